"""Unigram and interpolated bigram on the same held-out tokens, and by how much each model beats them."""

from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError
from herd.evaluation.bench import TASKS, BaseTask, Bench, score
from herd.evaluation.ngram import fit_ngram
from herd.evaluation.scoring import LanguageModel
from herd.runs.seeds import stream
from herd.runs.statistics import bootstrap_ratios, percentile_interval

NAME = "ngram_baselines"


@dataclass(frozen=True)
class NgramBaselinesConfig:
    """How the baselines are fitted. They see the whole training split, at least what a model has seen of it."""

    apart: float = 0.05  # share of the training documents kept apart to fit the interpolation weight

    def __post_init__(self) -> None:
        if not 0 < self.apart < 1:
            raise UserError(f"evaluate.ngram_baselines.apart={self.apart} must lie between 0 and 1.")


@TASKS.register(NAME)
class NgramBaselines(BaseTask):
    """``loss`` of the labels ``unigram`` and ``bigram``, nats per token; a model's ``margin_over_<baseline>``."""

    def __init__(self, config: NgramBaselinesConfig, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        sources = {d: bench.shards.source("train", d) for d in bench.shards.domains("train")}
        training = {d: (source.tokens, np.asarray(source.offsets)) for d, source in sources.items()}
        mix = bench.mix if any(bench.mix.get(d) for d in training) else dict.fromkeys(training, 1.0)
        model = fit_ngram(training, mix, bench.tokenizer.vocab_size, config.apart)
        self.nll: dict[str, dict[str, np.ndarray]] = {"unigram": {}, "bigram": {}}
        for domain, heldout in bench.heldout.items():
            tokens = np.concatenate(heldout.documents)
            ends = np.cumsum([len(d) for d in heldout.documents])
            starts = ends - [len(d) for d in heldout.documents]
            inside = np.ones(len(tokens), dtype=bool)
            inside[starts] = False  # a document's first token is given, not predicted
            targets, previous = tokens[inside], tokens[:-1][inside[1:]]
            firsts = np.concatenate([[0], np.cumsum(heldout.targets)[:-1]])
            for name, nll in (("unigram", model.unigram_nll(targets)), ("bigram", model.bigram_nll(previous, targets))):
                self.nll[name][domain] = np.add.reduceat(nll, firsts)
        self.result.n_samples[NAME] = sum(len(h.documents) for h in bench.heldout.values())
        self.result.notes = {"training_tokens": model.tokens, "bigram_weight": model.weight, "apart": config.apart}
        for name, by_domain in self.nll.items():
            self._enter(name, "loss", by_domain)

    def language_model(self, lm: LanguageModel) -> None:
        own = self.bench.heldout_nll(lm)
        self._enter(lm.label, "loss", own)
        for name, by_domain in self.nll.items():
            self._enter(lm.label, f"margin_over_{name}", {d: by_domain[d] - own[d] for d in own})

    def _enter(self, label: str, metric: str, nll: dict[str, np.ndarray]) -> None:
        """A score by domain (in the task ``ngram_baselines_<domain>``) and its mean under the mix."""
        mean, draws = 0.0, np.zeros(self.bench.resamples)
        for domain, share in self.bench.shares().items():
            targets = self.bench.heldout[domain].targets
            rng = stream(self.bench.seed, NAME, domain)
            resampled = bootstrap_ratios(nll[domain], targets, rng, self.bench.resamples)
            value = float(nll[domain].sum() / targets.sum())
            self.result.n_samples[f"{NAME}_{domain}"] = len(targets)
            self.result.add(label, f"{NAME}_{domain}", score(metric, value, percentile_interval(resampled)))
            mean, draws = mean + share * value, draws + share * resampled
        self.result.add(label, NAME, score(metric, mean, percentile_interval(draws)))
