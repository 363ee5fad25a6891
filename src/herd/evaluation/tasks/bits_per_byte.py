"""Bits per byte of held-out text, by domain: nats / (ln 2 x UTF-8 bytes), comparable between tokenizers.

All predicted tokens count, the end of text too (a code for a document must say where it ends); special tokens have 0
bytes. Intervals are bootstraps over documents, since tokens of one document are far from independent.
"""

import math
from dataclasses import dataclass

import numpy as np

from herd.evaluation.bench import TASKS, BaseTask, Bench, score
from herd.evaluation.scoring import LanguageModel
from herd.runs.seeds import stream
from herd.runs.statistics import bootstrap_ratios, percentile_interval

NAME = "bits_per_byte"


@dataclass(frozen=True)
class BitsPerByteConfig:
    """Nothing to choose: the text is that of `heldout`."""


@TASKS.register(NAME)
class BitsPerByte(BaseTask):
    """``bits_per_byte_<domain>`` and their mean under the training mix; ``loss`` is nats per token."""

    def __init__(self, config: BitsPerByteConfig, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        for domain, heldout in bench.heldout.items():
            self.result.n_samples[f"{NAME}_{domain}"] = len(heldout.documents)
        self.result.n_samples[NAME] = sum(len(h.documents) for h in bench.heldout.values())
        self.result.notes = {
            "tokens": {d: int(h.targets.sum()) for d, h in bench.heldout.items()},
            "bytes": {d: int(h.text_bytes.sum()) for d, h in bench.heldout.items()},
        }

    def language_model(self, lm: LanguageModel) -> None:
        nll, shares = self.bench.heldout_nll(lm), self.bench.shares()
        means = {"bits_per_byte": 0.0, "loss": 0.0}
        draws = {name: np.zeros(self.bench.resamples) for name in means}
        for domain, heldout in self.bench.heldout.items():
            units = {"bits_per_byte": math.log(2) * heldout.text_bytes, "loss": heldout.targets}
            for name, per in units.items():
                # The same documents are drawn for every model and unit: differences between them are not blurred.
                rng = stream(self.bench.seed, NAME, domain)
                resampled = bootstrap_ratios(nll[domain], per, rng, self.bench.resamples)
                value = float(nll[domain].sum() / per.sum())
                self.result.add(lm.label, f"{NAME}_{domain}", score(name, value, percentile_interval(resampled)))
                means[name] += shares[domain] * value
                draws[name] += shares[domain] * resampled
        for name, value in means.items():
            self.result.add(lm.label, NAME, score(name, value, percentile_interval(draws[name])))
