"""What the tasks of one evaluation share: the tokenizer, the held-out text, the form of a result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from herd.config.registry import Registry
from herd.corpus.shards import TokenShards
from herd.corpus.tokenizer import Tokenizer
from herd.evaluation.heldout import HeldoutDocuments, document_nll, heldout_documents
from herd.evaluation.scoring import LanguageModel
from herd.runs.stage import Artifact
from herd.runs.statistics import Interval

Metrics = dict[str, Any]  # "<metric>,<filter>" -> value, as lm-eval names them


@dataclass(frozen=True)
class HeldoutConfig:
    """Which held-out text is scored."""

    tokens_per_domain: int = 15_000  # at most this many tokens of each domain (whole documents); 0: all
    document_tokens: int = 1024  # longer documents are cut, so that a few do not decide the score; 0: none is
    context_tokens: int = 256  # window in which a document is read, tokens; a model's own length when that is shorter


@dataclass
class Bench:
    """Shared by all tasks; the held-out scores of a model are computed once."""

    seed: int
    resamples: int  # of every bootstrap
    mix: Mapping[str, float]  # domain -> weight in means over domains, and in the n-gram counts
    heldout_config: HeldoutConfig
    tokenizer: Tokenizer
    shards: TokenShards
    documents: Artifact  # curate
    dialogs: Artifact | None
    preferences: Mapping[str, Artifact]
    scratch: Path  # what is dear to make again lies here while the evaluation is unfinished
    labels: tuple[str, ...]  # language models under test, in order
    models: Mapping[str, Artifact] = field(default_factory=dict)  # of these labels: where each comes from
    dialects: Mapping[str, str] = field(default_factory=dict)  # model or reward model -> the dialect in which it reads messages
    _nll: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def dialect(self, label: str) -> str:
        """How messages become tokens for a model; `meta` where nothing is known of it."""
        return self.dialects.get(label, "meta")

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(V,) bytes of text that each id stands for; 0 for special tokens."""
        return self.tokenizer.token_bytes

    @cached_property
    def heldout(self) -> dict[str, HeldoutDocuments]:
        """Domain -> held-out documents, for the domains that have any."""
        c = self.heldout_config
        return {
            domain: heldout_documents(self.shards, domain, self.token_bytes, c.tokens_per_domain, c.document_tokens, self.seed)
            for domain in self.shards.domains("heldout")
        }

    def heldout_nll(self, lm: LanguageModel) -> dict[str, np.ndarray]:
        """Domain -> (documents,) nats of a model on the held-out documents."""
        if lm.label not in self._nll:
            context = self.heldout_config.context_tokens
            self._nll[lm.label] = {d: document_nll(lm, h.documents, context) for d, h in self.heldout.items()}
        return self._nll[lm.label]

    def shares(self) -> dict[str, float]:
        """Weights of the held-out domains, summing to 1; a domain that the mix does not name has none."""
        weights = {domain: float(self.mix.get(domain, 0.0)) for domain in self.heldout}
        total = sum(weights.values())
        return {d: w / total for d, w in weights.items()} if total else {d: 1 / len(weights) for d in weights}


@dataclass
class TaskResult:
    """What a task found."""

    results: dict[str, dict[str, Metrics]] = field(default_factory=dict)  # label -> task -> metrics
    n_samples: dict[str, int] = field(default_factory=dict)  # task -> examples (units of its interval)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # task -> rows of samples_<task>.jsonl
    comparisons: list[dict[str, Any]] = field(default_factory=list)  # two models on the same examples
    notes: dict[str, Any] = field(default_factory=dict)  # how examples were made, what was left out
    skipped: str | None = None  # why the task could not be done here

    def add(self, label: str, task: str, metrics: Metrics) -> None:
        """Enter metrics of one model (or baseline) on one task."""
        self.results.setdefault(label, {}).setdefault(task, {"alias": task}).update(metrics)


class Task(Protocol):
    """One task: shown every language model, then every reward model, then asked for its result."""

    def language_model(self, lm: LanguageModel) -> None:
        """Measure one language model; it may be gone afterwards."""

    def reward_model(self, label: str, model: Any) -> None:
        """Measure, or measure with, one reward model."""

    def finish(self) -> TaskResult:
        """The result of all models."""


class BaseTask:
    """A task that does nothing with either kind of model; tasks override what they need."""

    def __init__(self) -> None:
        self.result = TaskResult()

    def language_model(self, lm: LanguageModel) -> None:
        """Nothing by default."""

    def reward_model(self, label: str, model: Any) -> None:
        """Nothing by default."""

    def finish(self) -> TaskResult:
        """What was entered so far."""
        return self.result


TASKS: Registry[type] = Registry("evaluation task")  # name -> class built from (its config, Bench)


def score(name: str, value: float, interval: Interval, stderr: float | None = None, filter: str = "none") -> Metrics:
    """lm-eval's keys for one score, with its 95% interval beside it."""
    metrics: Metrics = {f"{name},{filter}": float(value), f"{name}_interval,{filter}": interval.to_list()}
    return metrics if stderr is None else metrics | {f"{name}_stderr,{filter}": float(stderr)}
