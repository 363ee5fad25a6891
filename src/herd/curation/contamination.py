"""Contamination of benchmarks by the training corpus: which examples were seen, and what that was worth (paper, section 5.1.4).

An example counts as contaminated when at least a share T_D of its words lies in 8-grams of words that occur in the corpus. How
much must be covered differs from benchmark to benchmark (a question on a text that everybody quotes is covered, and still not
known), so T_D is chosen for each: the value with the largest significant estimated performance gain over the models given. The
gain is the score on all examples minus the score on the clean ones: what the contaminated ones add to the printed score.

The paper counts tokens of its tokenizer; words depend on no tokenizer, nor on case and punctuation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Gain:
    """One threshold for one model."""

    threshold: float  # T_D
    model: str
    examples: int
    contaminated: int
    score_all: float  # mean over all examples
    score_clean: float | None  # mean over the clean ones; None when there are too few on a side to estimate a gain
    gain: float | None  # score_all - score_clean
    low: float | None  # of the gain's interval
    high: float | None
    significant: bool  # the whole interval lies above 0


def estimated_gain(
    scores: np.ndarray, contaminated: np.ndarray, confidence: float, min_examples: int
) -> tuple[float, float, float] | None:
    """(gain, low, high) of score(all) - score(clean) for scores in [0, 1]; None with fewer than ``min_examples`` on a side.

    With a share p of contaminated examples the gain is p (mean of the contaminated - mean of the clean), a difference of two
    independent means; its normal interval takes the variances after one success and one failure have been added to each side, as
    Agresti and Caffo (2000) do for proportions: without them a side that is all right or all wrong would seem to be certain.

    Args:
        scores: (examples,) float64.
        contaminated: (examples,) bool.
        confidence: of the interval, e.g. 0.95.
        min_examples: at least 2.
    """
    dirty, clean = scores[contaminated], scores[~contaminated]
    if min(len(dirty), len(clean)) < min_examples:
        return None
    share = len(dirty) / len(scores)
    gain = share * (dirty.mean() - clean.mean())
    variance = sum(np.concatenate([side, [0.0, 1.0]]).var() / (len(side) + 2) for side in (dirty, clean))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * share * np.sqrt(variance)
    return float(gain), float(gain - half), float(gain + half)


def sweep(
    shares: np.ndarray, scores: Mapping[str, np.ndarray], thresholds: Sequence[float], confidence: float, min_examples: int
) -> list[Gain]:
    """The gain at each threshold for each model, by threshold, then model.

    Args:
        shares: (examples,) float64, share of each example's words that is covered.
        scores: model -> (examples,) float64 in [0, 1].
        thresholds: values of T_D.
        confidence, min_examples: see :func:`estimated_gain`.
    """
    rows = []
    for threshold in sorted(thresholds):
        contaminated = is_contaminated(shares, threshold)
        for model, values in sorted(scores.items()):
            found = estimated_gain(values, contaminated, confidence, min_examples)
            gain, low, high = found or (None, None, None)
            clean = float(values[~contaminated].mean()) if found else None
            significant = low is not None and low > 0
            facts = len(values), int(contaminated.sum()), float(values.mean()), clean, gain, low, high, significant
            rows.append(Gain(threshold, model, *facts))
    return rows


def is_contaminated(shares: np.ndarray, threshold: float) -> np.ndarray:
    """Examples with at least a share ``threshold`` covered, (examples,) bool; one of which nothing is covered never counts."""
    return (shares >= threshold) & (shares > 0)


def choose_threshold(gains: Sequence[Gain]) -> float | None:
    """T_D: the threshold of the largest significant gain over the models, the smallest of equals; None when none is significant.

    The same examples are tested at every threshold, and the best is taken: the chosen gain is an upper estimate.
    """
    significant = [g for g in gains if g.significant and g.gain is not None]
    return max(significant, key=lambda g: (g.gain, -g.threshold)).threshold if significant else None
