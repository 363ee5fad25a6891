"""How good are scores? Discrimination, calibration, precision and recall, each with an interval; plain values for a manifest.

Everything is counted over documents, since passages of one document are not independent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_Z95 = 1.959963984540054
_BINS = 10
_ENOUGH_TO_CALIBRATE = 20  # documents


def softmax(logits: np.ndarray) -> np.ndarray:
    """(documents, classes) logits to probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_calibration(logits: np.ndarray, truth: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and shift so that softmax(scale x logits + shift) is calibrated (Platt 1999; Guo et al. 2017).

    They minimise the negative log-likelihood of whole documents: a mean over passages is more certain than one passage, which
    a fit on passages cannot know. A weak prior holds the result near (1, 0); with fewer than 20 documents, or a class
    without any, it is exactly that. What is stated then holds where classes are as frequent as in the examples; elsewhere
    the order of documents holds, not the probabilities.

    Args:
        logits: (documents, classes), of documents that trained nothing.
        truth: (documents,) index of the class.
        shares: (classes,) share of each class among all examples. Whole groups calibrate, so theirs may differ by chance;
            documents are weighted to make up for it.

    Returns:
        The scale, and the shift (classes,) float32, which is empty where nothing was fitted.
    """
    from scipy.optimize import minimize

    documents, classes = logits.shape
    if documents < _ENOUGH_TO_CALIBRATE or len(np.unique(truth)) < classes:
        return 1.0, np.zeros(0, np.float32)
    weight = (shares * documents / np.bincount(truth, minlength=classes))[truth]

    def loss(x: np.ndarray) -> float:
        scaled = np.exp(x[0]) * logits + x[1:]
        top = scaled.max(axis=1, keepdims=True)
        logs = scaled - top - np.log(np.exp(scaled - top).sum(axis=1, keepdims=True))
        return float(-(weight * logs[np.arange(documents), truth]).sum() + (x**2).sum() / 2)

    found = minimize(loss, np.zeros(1 + classes), method="L-BFGS-B").x
    return float(np.exp(found[0])), (found[1:] - found[1:].mean()).astype(np.float32)


def auc(positive: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a positive document scores above a negative one; ties count one half.

    Args:
        positive: (documents,) bool, both values present.
        scores: (documents,) finite.
    """
    labels, values = np.asarray(positive, bool), np.asarray(scores, np.float64)
    m, n = int(labels.sum()), int((~labels).sum())
    assert m and n, "both classes are needed"
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]  # mean rank of each group of equal scores, from 1
    return float((ranks[labels].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(value: float, positives: int, negatives: int) -> list[float]:
    """95% interval of an AUC from so many documents of either kind: Newcombe (2006), method 5.

    The limits are the values from which the observed one is 1.96 standard errors away, with Hanley and McNeil's standard
    error at the limit. Unlike a bootstrap it does not collapse when all pairs are in order.
    """

    def error(theta: float) -> float:
        half = (positives + negatives) / 2 - 1
        spread = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
        return float(np.sqrt(theta * (1 - theta) * spread / (positives * negatives)))

    def limit(outer: float) -> float:
        inside, outside = value, outer
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(middle - value) <= _Z95 * error(middle):
                inside = middle
            else:
                outside = middle
        return inside

    return [limit(0.0), limit(1.0)]


def stratified_auc(positive: ArrayLike, scores: ArrayLike, strata: ArrayLike) -> tuple[float | None, int]:
    """AUC over the pairs of documents that share a stratum, and their number; (None, 0) where no stratum has both kinds."""
    labels, values, groups = np.asarray(positive, bool), np.asarray(scores, np.float64), np.asarray(strata)
    concordant, pairs = 0.0, 0
    for group in np.unique(groups):
        inside = groups == group
        count = int(labels[inside].sum()) * int((~labels[inside]).sum())
        if count:
            concordant += count * auc(labels[inside], values[inside])
            pairs += count
    return (concordant / pairs, pairs) if pairs else (None, 0)


def reliability(stated: ArrayLike, right: ArrayLike, bins: int = _BINS) -> list[dict[str, float]]:
    """Documents by stated probability, in bins of equal width: how many, what was stated on average, how often it held."""
    probabilities, outcomes = np.asarray(stated, np.float64), np.asarray(right, np.float64)
    which = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    found = []
    for b in np.unique(which).tolist():
        inside = which == b
        facts = {
            "documents": int(inside.sum()),
            "stated": float(probabilities[inside].mean()),
            "held": float(outcomes[inside].mean()),
        }
        found.append({"from": b / bins, "to": (b + 1) / bins, **facts})
    return found


def expected_calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Mean distance of what was stated from what held, weighted by documents (Naeini et al. 2015); 0 is perfect."""
    total = sum(b["documents"] for b in bins)
    return float(sum(b["documents"] * abs(b["stated"] - b["held"]) for b in bins) / total)


def precision_recall(positive: ArrayLike, scores: ArrayLike, thresholds: Sequence[float] = THRESHOLDS) -> list[dict[str, Any]]:
    """At each threshold: share of documents at or above it, precision with Wilson's 95% interval (None of nothing), recall."""
    labels, values = np.asarray(positive, bool), np.asarray(scores, np.float64)
    rows = []
    for threshold in thresholds:
        kept = values >= threshold
        hits, count = int((kept & labels).sum()), int(kept.sum())
        rows.append(
            {
                "threshold": threshold,
                "kept": count / len(values),
                "precision": hits / count if count else None,
                "precision_interval": wilson_interval(hits, count) if count else None,
                "recall": hits / int(labels.sum()) if labels.any() else None,
            }
        )
    return rows


def wilson_interval(hits: int, count: int) -> list[float]:
    """Wilson's 95% interval of hits / count, for count > 0."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def binary_report(positive: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Everything about one probability per document: AUC with interval, Brier score, calibration, precision and recall."""
    labels, values = np.asarray(positive, bool), np.asarray(probabilities, np.float64)
    assert labels.shape == values.shape and labels.ndim == 1
    m, n = int(labels.sum()), int((~labels).sum())
    area = auc(labels, values) if m and n else None
    bins = reliability(values, labels)
    return {
        "documents": len(labels),
        "positives": m,
        "auc": area,
        "auc_interval": None if area is None else auc_interval(area, m, n),
        "brier": float(np.mean((values - labels) ** 2)),
        "brier_of_base_rate": float(labels.mean() * (1 - labels.mean())),  # of stating the share of positives every time
        "expected_calibration_error": expected_calibration_error(bins),
        "reliability": bins,
        "precision_recall": precision_recall(labels, values),
    }


def class_report(labels: ArrayLike, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """About one distribution over classes per document; two classes are reported by the probability of the second.

    Args:
        labels: (documents,) index of the true class.
        probabilities: (documents, classes), rows sum to 1.
        classes: names.
    """
    truth = np.asarray(labels, np.int64)
    assert probabilities.shape == (len(truth), len(classes))
    guess = probabilities.argmax(axis=1)
    right = guess == truth
    counts = np.bincount(truth, minlength=len(classes))
    found: dict[str, Any] = {
        "classes": list(classes),
        "accuracy": float(right.mean()),
        "accuracy_interval": wilson_interval(int(right.sum()), len(right)),
        "most_frequent_class": float(counts.max() / len(truth)),  # the accuracy of always naming it
    }
    if len(classes) == 2:
        return found | binary_report(truth == 1, probabilities[:, 1])
    bins = reliability(probabilities.max(axis=1), right)
    wrong = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(wrong, (truth, guess), 1)
    return found | {
        "documents": len(truth),
        "brier": float(np.mean(((probabilities - np.eye(len(classes))[truth]) ** 2).sum(axis=1))),
        "expected_calibration_error": expected_calibration_error(bins),  # of the probability of the class that is named
        "reliability": bins,
        "confusion": {a: {b: int(wrong[i, j]) for j, b in enumerate(classes) if wrong[i, j]} for i, a in enumerate(classes)},
        "per_class": {
            name: _one_against_rest(truth == i, probabilities[:, i], guess == i) for i, name in enumerate(classes) if counts[i]
        },
    }


def _one_against_rest(positive: np.ndarray, probabilities: np.ndarray, named: np.ndarray) -> dict[str, Any]:
    hits = int((positive & named).sum())
    report = binary_report(positive, probabilities)
    return {
        "documents": report["positives"],
        "auc": report["auc"],
        "auc_interval": report["auc_interval"],
        "precision": hits / int(named.sum()) if named.any() else None,
        "recall": hits / int(positive.sum()),
        "precision_recall": report["precision_recall"],
    }
