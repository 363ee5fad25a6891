"""Four-way multiple choice from held-out documentation, answered by likelihood.

Each choice's log-probability after the question decides, as it stands (``acc``) or divided by the choice's characters
(``acc_norm``), bytes (``acc_bytes``) or tokens (``acc_token``), or less its log-probability after nothing
(``acc_mutual_info``). All are reported, always; the configuration says which one is the headline.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq

from herd.config.errors import UserError, nearest
from herd.evaluation.bench import TASKS, BaseTask, Bench, TaskResult
from herd.evaluation.bench import score as score_metrics
from herd.evaluation.choice_items import CHOICES, ItemLimits, candidates, drop_known, lexical_overlap, make_items
from herd.evaluation.scoring import LanguageModel, Request, encode_choices, score
from herd.runs.seeds import stream
from herd.runs.statistics import mean_stderr, paired, wald_half_width, wilson
from herd.runs.tables import iterate_rows, shard_files

NAME = "documentation_choice"
KINDS = ("summary", "description")
RIVALS = ("package", "any")
METRICS = ("acc", "acc_norm", "acc_bytes", "acc_token", "acc_mutual_info")


@dataclass(frozen=True)
class DocumentationChoiceConfig:
    """How questions are made and which score is the headline."""

    items: int = 600  # questions at most; 0: all
    # summary: asked by name and signature; description: asked by these and the summary
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    headline: str = "acc_norm"  # the score that summaries print, one of METRICS
    min_characters: int = 20  # of an answer
    max_characters: int = 240  # of an answer
    max_length_ratio: float = 1.6  # of the answers that stand side by side
    rivals: str = "package"  # wrong answers come from the same package (harder), or from any

    def __post_init__(self) -> None:
        if self.headline not in METRICS:
            raise UserError(
                f"evaluate.{NAME}.headline: unknown score '{self.headline}'."
                f"{nearest(self.headline, METRICS)} Choices: {', '.join(METRICS)}."
            )
        if self.rivals not in RIVALS:
            raise UserError(
                f"evaluate.{NAME}.rivals: unknown choice '{self.rivals}'."
                f"{nearest(self.rivals, RIVALS)} Choices: {', '.join(RIVALS)}."
            )
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(
                    f"evaluate.{NAME}.kinds: unknown kind '{kind}'.{nearest(kind, KINDS)} Choices: {', '.join(KINDS)}."
                )
        if self.items < 0 or not 8 <= self.min_characters <= self.max_characters or self.max_length_ratio < 1:
            raise UserError(f"evaluate.{NAME}: need items >= 0, 8 <= min_characters <= max_characters, max_length_ratio >= 1.")


@TASKS.register(NAME)
class DocumentationChoice(BaseTask):
    """Accuracies with Wilson intervals, the true answer's NLL, and paired tests between consecutive models."""

    def __init__(self, config: DocumentationChoiceConfig, bench: Bench) -> None:
        super().__init__()
        self.config, self.bench = config, bench
        limits = ItemLimits(config.min_characters, config.max_characters, config.max_length_ratio, config.rivals)
        counts: dict[str, int] = {}
        rows = pq.read_table(bench.documents / "entries.parquet").to_pylist()
        found = candidates([r for r in rows if r["split"] == "heldout"], config.kinds, limits, counts)
        training = shard_files(bench.documents / "documents", "train")
        found = drop_known(found, (row["text"] for path in training for row in iterate_rows(path, ["text"])), counts)
        self.items = make_items(found, limits, config.items, bench.seed, counts)
        self.result.n_samples[NAME] = len(self.items)
        self.result.notes = {
            "items": len(self.items),
            "items_by_kind": {kind: sum(item.kind == kind for item in self.items) for kind in config.kinds},
            "left_out": dict(sorted(counts.items())),
            "chance": 1 / CHOICES,
            "headline": config.headline,
            "rivals": config.rivals,
        }
        if not self.items:
            self.result.skipped = "no questions can be made: the held-out documents have too few documented functions"
            return
        overlap = lexical_overlap(self.items)
        self.result.notes["lexical_overlap"] = {
            "acc": float(overlap.mean()),
            "interval": wilson(float(overlap.mean()), len(overlap)).to_list(),
        }
        self._encode()
        self.correct: dict[str, np.ndarray] = {}

    def _encode(self) -> None:
        questions = [(item.context, item.choices) for item in self.items]
        self.requests = encode_choices(self.bench.tokenizer, questions)
        # After nothing: how likely the text is anyway.
        self.distinct = sorted({tuple(choice) for request in self.requests for choice in request.choices})
        self.bare = [Request((self.bench.tokenizer.bos_id,), (choice,)) for choice in self.distinct]

    def language_model(self, lm: LanguageModel) -> None:
        if not self.items:
            return
        given = np.stack([likelihood.logprobs for likelihood in score(lm, self.requests)])  # (items, 4)
        alone = {c: float(s.logprobs[0]) for c, s in zip(self.distinct, score(lm, self.bare), strict=True)}
        anyway = np.array([[alone[c] for c in request.choices] for request in self.requests])
        sizes = {
            "acc_norm": np.array([[len(c) for c in item.choices] for item in self.items]),
            "acc_bytes": np.array([[len(c.encode("utf-8")) for c in item.choices] for item in self.items]),
            "acc_token": np.array([[len(c) for c in request.choices] for request in self.requests]),
        }
        scores = {
            "acc": given,
            **{name: given / size for name, size in sizes.items()},
            "acc_mutual_info": given - anyway,
        }
        answers = np.array([item.answer for item in self.items])
        picks = {name: values.argmax(axis=1) for name, values in scores.items()}
        n = len(self.items)
        for name, pick in picks.items():
            accuracy = float((pick == answers).mean())
            metrics = score_metrics(name, accuracy, wilson(accuracy, n), mean_stderr(pick == answers))
            self.result.add(lm.label, NAME, metrics | {f"{name}_wald,none": wald_half_width(accuracy, n)})
        true = given[np.arange(n), answers]
        for unit, name in (("token", "acc_token"), ("character", "acc_norm"), ("byte", "acc_bytes")):
            nll = -true / sizes[name][np.arange(n), answers]
            self.result.add(lm.label, NAME, {f"choice_nll_per_{unit},none": float(nll.mean())})
        self.correct[lm.label] = picks[self.config.headline] == answers
        for kind in self.config.kinds:
            hits = self.correct[lm.label][[item.kind == kind for item in self.items]]
            if len(hits):
                metrics = score_metrics(self.config.headline, hits.mean(), wilson(hits.mean(), len(hits)), mean_stderr(hits))
                self.result.add(lm.label, f"{NAME}_{kind}", metrics)
                self.result.n_samples[f"{NAME}_{kind}"] = len(hits)
        for i, item in enumerate(self.items):
            row = {"model": lm.label, "doc_id": i, "id": item.id, "kind": item.kind, "package": item.package}
            row |= {"context": item.context, "choices": list(item.choices), "target": item.answer}
            row |= {"resps": [round(float(x), 4) for x in given[i]]}
            self.result.samples.setdefault(NAME, []).append(row | {name: bool(p[i] == item.answer) for name, p in picks.items()})

    def finish(self) -> TaskResult:
        """Adds, for every model after the first, the paired comparison with the first and with the one before."""
        labels = list(getattr(self, "correct", {}))
        pairs = dict.fromkeys(
            (a, labels[j]) for i, a in enumerate(labels) for j in range(i + 1, len(labels)) if i == 0 or j == i + 1
        )
        for first, second in pairs:
            rng = stream(self.bench.seed, NAME, "paired")
            found = paired(self.correct[second], self.correct[first], rng, self.bench.resamples)
            self.result.comparisons.append(
                {
                    "task": NAME,
                    "metric": self.config.headline,
                    "models": [second, first],
                    "difference": found.difference,
                    "interval": found.interval.to_list(),
                    "only_first": found.only_first,
                    "only_second": found.only_second,
                    "mcnemar_p": found.p_value,
                }
            )
        return self.result
