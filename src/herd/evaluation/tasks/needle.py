"""Needle in a haystack by length and depth, scored by likelihood so that it says something about small models too.

A statement ("The value of <key> is <value>.") is put into held-out text at a depth and asked for at the end. The true
value competes with values that were drawn from the same list and stand nowhere in the text; since true and false
values are exchangeable, a model that cannot look back scores 1 / (1 + distractors). Exact match asks whether greedy
decoding writes the value. One caution: to prefer any word that has been seen is enough to pass; a single needle does
not show that the key was used.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from herd.config.errors import UserError
from herd.evaluation.bench import TASKS, BaseTask, Bench
from herd.evaluation.bench import score as score_metrics
from herd.evaluation.scoring import LanguageModel, Request, score
from herd.runs.seeds import stream
from herd.runs.statistics import mean_stderr, wilson

NAME = "needle"
STATEMENT = "\nThe value of{key} is{value}.\n"
QUESTION = "\nThe value of{key} is"
_WORD = re.compile(r" [A-Za-z]{3,}")  # as tokens of the vocabulary: one blank and letters


@dataclass(frozen=True)
class NeedleConfig:
    """The grid."""

    lengths: list[int] = field(
        default_factory=lambda: [64, 128, 256, 512]
    )  # tokens in all; those beyond a model's length are left out
    depths: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0]
    )  # 0: at the beginning, 1: right before the question
    trials: int = 8  # per cell
    distractors: int = 7  # false values beside the true one
    domain: str = "general"  # held-out text of the haystack
    models: list[str] = field(default_factory=list)  # labels to test; empty: all

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 48 or not self.depths or self.trials < 1 or self.distractors < 1:
            raise UserError(f"evaluate.{NAME}: need lengths of 48 tokens or more, depths, trials >= 1 and distractors >= 1.")
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise UserError(f"evaluate.{NAME}.depths={self.depths} must lie between 0 and 1.")


@dataclass(frozen=True)
class Trial:
    """One cell's one try: the request, whose choice 0 is the true value."""

    length: int
    depth: float
    request: Request


@TASKS.register(NAME)
class Needle(BaseTask):
    """``acc`` by likelihood and ``exact_match`` by greedy decoding, over all cells and in ``grid`` by cell."""

    def __init__(self, config: NeedleConfig, bench: Bench) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = bench.tokenizer
        texts = [self.tokenizer.decode([i]) for i in range(self.tokenizer.vocab_size)]
        self.words = [text for text in texts if _WORD.fullmatch(text)]
        self.ends_line = np.array(["\n" in text for text in texts])
        self.seed = bench.seed
        self.text = np.zeros(0, dtype=np.int64)
        if config.domain in bench.shards.domains("heldout"):
            source = bench.shards.source("heldout", config.domain)
            tokens = np.asarray(source.tokens[: 64 * max(config.lengths) * config.trials]).astype(np.int64)
            self.text = tokens[bench.token_bytes[tokens] > 0]
        self.trials: list[Trial] = []
        self.result.notes = {
            "chance": 1 / (1 + config.distractors),
            "trials_per_cell": config.trials,
            "words": len(self.words),
        }
        if len(self.text) < max(config.lengths):
            self.result.skipped = (
                f"held-out text of '{config.domain}' is shorter than the longest haystack ({len(self.text)} tokens)"
            )
        elif len(self.words) < 4 * (config.distractors + 2):
            self.result.skipped = f"the vocabulary has only {len(self.words)} whole words to draw keys and values from"
        else:
            grid = [(n, d, t) for n in config.lengths for d in config.depths for t in range(config.trials)]
            self.trials = [trial for trial in (self._trial(*cell) for cell in grid) if trial is not None]
            self.result.n_samples[NAME] = len(self.trials)

    def _trial(self, length: int, depth: float, number: int) -> Trial | None:
        """One try; None when needle and question (long in a small vocabulary) leave no room for a haystack."""
        # Text, key and values are drawn anew for every trial, so that trials of all cells together are independent.
        rng = stream(self.seed, NAME, length, str(depth), number)
        start = int(rng.integers(0, len(self.text) - length + 1))
        hay = self.text[start : start + length]
        shown = self.tokenizer.decode(hay.tolist())
        unseen = [word for word in self.words if word not in shown]
        drawn = [str(w) for w in rng.choice(unseen or self.words, size=self.config.distractors + 2, replace=False)]
        key, values = drawn[0], drawn[1:]
        encode = self.tokenizer.encode
        statement, question = encode(STATEMENT.format(key=key, value=values[0])), encode(QUESTION.format(key=key))
        choices = tuple(tuple(encode(value)) for value in values)
        room = length - 1 - len(statement) - len(question) - max(map(len, choices))
        if room < 1:
            return None
        hay = hay[:room]
        at = self._line_break(hay, round(depth * room))
        tokens = [self.tokenizer.bos_id, *hay[:at].tolist(), *statement, *hay[at:].tolist(), *question]
        return Trial(length, depth, Request(tuple(tokens), choices))

    def _line_break(self, hay: np.ndarray, wanted: int) -> int:
        """The place after a line break nearest to ``wanted``, when one is near; the ends stay the ends."""
        breaks = np.flatnonzero(self.ends_line[hay]) + 1
        if wanted in (0, len(hay)) or not len(breaks):
            return wanted
        nearest = int(breaks[np.abs(breaks - wanted).argmin()])
        return nearest if abs(nearest - wanted) <= len(hay) // 16 else wanted

    def language_model(self, lm: LanguageModel) -> None:
        trials = [trial for trial in self.trials if trial.length <= lm.max_seq_len]
        if not trials or (self.config.models and lm.label not in self.config.models):
            return
        found = score(lm, [trial.request for trial in trials])
        # The true value must be strictly the best: a model that finds all alike has found nothing.
        hits = np.array([f.logprobs[0] > f.logprobs[1:].max() for f in found])
        exact = np.array([f.greedy[0] for f in found])
        grid = []
        for length in sorted({trial.length for trial in trials}):
            for depth in self.config.depths:
                cell = np.array([trial.length == length and trial.depth == depth for trial in trials])
                grid.append({"length": length, "depth": depth, "n": int(cell.sum())} | _metrics(hits[cell], exact[cell]))
        self.result.add(lm.label, NAME, _metrics(hits, exact) | {"grid": grid, "n": len(trials)})
        for trial, scored, hit, written in zip(trials, found, hits, exact, strict=True):
            row = {"model": lm.label, "length": trial.length, "depth": trial.depth}
            row |= {
                "value": self.tokenizer.decode(trial.request.choices[0]),
                "resps": [round(float(x), 4) for x in scored.logprobs],
            }
            self.result.samples.setdefault(NAME, []).append(row | {"acc": bool(hit), "exact_match": bool(written)})


def _metrics(hits: np.ndarray, exact: np.ndarray) -> dict[str, object]:
    n = len(hits)
    return {
        **score_metrics("acc", hits.mean(), wilson(float(hits.mean()), n), mean_stderr(hits)),
        **score_metrics("exact_match", exact.mean(), wilson(float(exact.mean()), n), mean_stderr(exact)),
    }
