"""One linear model for all: hashed word and character n-grams, logistic regression, calibrated on documents of their own.

Hashing is done here in numpy (scikit-learn fits the weights and is not needed to score), so a worker process that scores
loads nothing heavy, and a model gives the same bits on every machine. A model is a frozen value; scoring is a pure function
of (model, text). Training sets documents aside twice, whole groups at a time: some to calibrate, some to measure.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.config.errors import UserError
from herd.curation.classifiers.calibration import auc, class_report, fit_calibration, softmax, stratified_auc
from herd.curation.text import ngram_hashes, word_hashes
from herd.runs.atomic import write_bytes
from herd.runs.seeds import stream

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_FORMAT = "herd.linear/1"
_TOKENS = re.compile(r"\w+|[^\w\s]")
_REGISTER_STRATA = 5


@dataclass(frozen=True)
class Example:
    """A labelled document."""

    text: str
    label: str
    group: str = ""  # documents of one group are never split between training and measuring; "" = it stands alone


@dataclass(frozen=True)
class LinearConfig:
    """Features and fit of a linear classifier."""

    features: int = 65_536  # hash buckets, a power of two
    word_ngrams: list[int] = field(default_factory=lambda: [1, 2])  # shortest and longest; [0, 0] = none. Marks are words
    character_ngrams: list[int] = field(default_factory=lambda: [0, 0])  # shortest and longest, across words; [0, 0] = none
    passage_words: int = 80  # words of a training example; a document's score is the mean over its passages
    max_passages: int = 4_000  # training passages per class
    max_scored: int = 50  # passages of a document that are scored, evenly spread over it
    inverse_regularisation: float = 1.0  # scikit-learn's C
    calibration_share: float = 0.1  # share of the documents that calibrate
    heldout_share: float = 0.2  # share of the documents that measure

    def __post_init__(self) -> None:
        if self.features < 2 or self.features & (self.features - 1):
            raise UserError(f"classifier.features = {self.features}: a power of two is needed.")
        for name in ("word_ngrams", "character_ngrams"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not (bounds == [0, 0] or 1 <= bounds[0] <= bounds[1] <= 12):
                raise UserError(f"classifier.{name} = {bounds}: [shortest, longest] in 1 to 12, or [0, 0], is needed.")
        if self.word_ngrams == self.character_ngrams == [0, 0]:
            raise UserError("classifier: word_ngrams or character_ngrams are needed.")
        if self.passage_words < 5 or self.max_passages < 10 or self.max_scored < 1 or self.inverse_regularisation <= 0:
            raise UserError(
                "classifier: passage_words >= 5, max_passages >= 10, max_scored >= 1 and inverse_regularisation > 0 are needed."
            )
        if not 0 < self.heldout_share < 1 or not 0 <= self.calibration_share < 1:
            raise UserError("classifier: heldout_share in (0, 1) and calibration_share in [0, 1) are needed.")
        if self.heldout_share + self.calibration_share > 0.8:
            raise UserError("classifier: heldout_share + calibration_share leave less than a fifth to train on.")


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Weights, and the two numbers a class that turn a document's logits into probabilities."""

    config: LinearConfig
    classes: tuple[str, ...]  # in alphabetic order, or as the task names them; of two, the second is the positive one
    weights: np.ndarray  # (features, classes) float32
    bias: np.ndarray  # (classes,) float32
    scale: float = 1.0  # calibration: softmax(scale x mean logits + shift)
    shift: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (classes,); empty = 0

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """(documents, classes) float64: mean over the passages of each document; the bias alone for one without words."""
        rows = []
        for text in texts:
            total = np.zeros(len(self.classes))
            parts = _spread(passages(text, self.config.passage_words), self.config.max_scored)
            for part in parts:
                buckets, values = hashed(part, self.config)
                total += values @ self.weights[buckets].astype(np.float64)
            rows.append(total / max(len(parts), 1) + self.bias)
        return np.array(rows).reshape(len(texts), len(self.classes))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(documents, classes) float64, rows sum to 1. Each row depends on its own text alone."""
        return softmax(self.scale * self.logits(texts) + (self.shift if len(self.shift) else 0.0))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(documents,) float32: probability of the positive of two classes."""
        assert len(self.classes) == 2, f"{len(self.classes)} classes: use probabilities"
        return self.probabilities(texts)[:, 1].astype(np.float32)

    def save(self, path: Path) -> None:
        """One .npz file, whole or not at all: arrays, and the rest as JSON text. No pickle."""
        meta = {"format": _FORMAT, "config": asdict(self.config), "classes": list(self.classes), "scale": self.scale}
        arrays = {"weights": self.weights, "bias": self.bias, "shift": self.shift}
        text = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, meta=text, **arrays)
        write_bytes(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "LinearModel":
        """Read what :meth:`save` wrote.

        Raises:
            UserError: missing, truncated, or another kind of file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                meta = json.loads(file["meta"].tobytes())
                if meta.get("format") != _FORMAT:
                    raise ValueError(f"format {meta.get('format')!r}, expected {_FORMAT}")
                config, classes = LinearConfig(**meta["config"]), tuple(meta["classes"])
                weights, bias, shift = file["weights"], file["bias"], file["shift"]
            if weights.shape != (config.features, len(classes)) or bias.shape != (len(classes),):
                raise ValueError("weights do not fit the classes")
            return cls(config, classes, weights, bias, float(meta["scale"]), shift)
        except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, UserError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is no classifier that herd saved ({reason}): train it again.") from error
        except Exception as error:  # zipfile.BadZipFile, zlib.error: a damaged archive has many names
            raise UserError(f"{path} is damaged ({type(error).__name__}): train the classifier again.") from error


def passages(text: str, size: int) -> list[str]:
    """Passages of ``size`` words; the last one may be shorter, but not shorter than half unless it is the only one."""
    items = text.split()
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    if len(parts) > 1 and len(parts[-1]) * 2 < size:
        parts.pop()
    return [" ".join(part) for part in parts]


def hashed(passage: str, config: LinearConfig) -> tuple[np.ndarray, np.ndarray]:
    """Buckets that a passage fills, sorted, and their values: 1 + log(count), words and characters each of length 1."""
    lowered = passage.lower()
    found = [part for part in (_word_part(lowered, config), _character_part(lowered, config)) if part is not None]
    if not found:
        return np.empty(0, np.int64), np.empty(0)
    if len(found) == 1:
        return found[0]
    both = np.concatenate([buckets for buckets, _ in found])
    buckets, inverse = np.unique(both, return_inverse=True)
    return buckets, np.bincount(inverse, np.concatenate([values for _, values in found])) / np.sqrt(2)


def _word_part(lowered: str, config: LinearConfig) -> tuple[np.ndarray, np.ndarray] | None:
    if config.word_ngrams == [0, 0]:
        return None
    return _counted(word_hashes(_TOKENS.findall(lowered)), config.word_ngrams, config.features)


def _character_part(lowered: str, config: LinearConfig) -> tuple[np.ndarray, np.ndarray] | None:
    if config.character_ngrams == [0, 0]:
        return None
    codes = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    # Spread: neighbouring code points would give neighbouring buckets.
    return _counted((codes + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93), config.character_ngrams, config.features)


def _counted(ids: np.ndarray, ngrams: Sequence[int], features: int) -> tuple[np.ndarray, np.ndarray] | None:
    shift = np.uint64(64 - (features.bit_length() - 1))
    found = [ngram_hashes(ids, n) for n in range(ngrams[0], ngrams[1] + 1)]
    hashes = np.concatenate(found)
    if not len(hashes):
        return None
    buckets, counts = np.unique((hashes >> shift).astype(np.int64), return_counts=True)
    values = 1.0 + np.log(counts)
    return buckets, values / np.sqrt((values**2).sum())


def _matrix(texts: Sequence[str], config: LinearConfig) -> "csr_matrix":
    """(texts, features) sparse."""
    from scipy.sparse import csr_matrix

    rows = [hashed(text, config) for text in texts]
    ends = np.concatenate([[0], np.cumsum([len(buckets) for buckets, _ in rows])])
    indices = np.concatenate([buckets for buckets, _ in rows]).astype(np.int32)
    return csr_matrix((np.concatenate([values for _, values in rows]), indices, ends), shape=(len(rows), config.features))


def train(
    examples: Sequence[Example], config: LinearConfig, seed: int, classes: Sequence[str] | None = None
) -> tuple[LinearModel, dict[str, Any]]:
    """Fit, calibrate, measure.

    Deterministic: equal examples in any order, configuration and seed give equal weights.

    Args:
        examples: documents; each class needs two groups of them at least.
        config: features and shares.
        seed: of the choice of documents and passages.
        classes: names in the order wanted; None = in alphabetic order.

    Returns:
        The model and a report of plain values: :func:`class_report` on held-out documents, the same with the calibration
        left out (`uncalibrated`), how much the register alone tells (:func:`register_report`, two classes), sizes.

    Raises:
        UserError: fewer than two classes, or a class with fewer than two groups or without words.
    """
    from sklearn.linear_model import LogisticRegression

    names = tuple(sorted({e.label for e in examples}) if classes is None else classes)
    if len(names) < 2:
        raise UserError(f"A classifier needs examples of two classes, found {', '.join(names) or 'none'}.")
    ordered = sorted((e for e in examples if e.text.strip()), key=lambda e: (e.label, e.group, e.text))
    parts = _split(ordered, names, config, seed)
    texts, labels = _training_passages(parts["train"], names, config, seed)
    for i, name in enumerate(names):
        if not (labels == i).any():
            raise UserError(f"The classifier has no words of class '{name}' to learn from.")
    fit = LogisticRegression(C=config.inverse_regularisation, class_weight="balanced", max_iter=500, tol=1e-5)
    fit.fit(_matrix(texts, config), labels)
    weights, bias = fit.coef_.T, fit.intercept_
    if len(names) == 2:  # scikit-learn gives one column: log-odds of the second class
        weights, bias = np.hstack([0 * weights, weights]), np.array([0.0, bias[0]])
    model = LinearModel(config, names, weights.astype(np.float32), bias.astype(np.float32))
    shares = np.array([sum(e.label == name for e in ordered) for name in names]) / len(ordered)
    scale, shift = _calibrate(model, parts["calibrate"], shares)
    model = LinearModel(config, names, model.weights, model.bias, scale, shift)
    measured = parts["heldout"]
    truth = np.array([names.index(e.label) for e in measured])
    heldout = [e.text for e in measured]
    report = class_report(truth, model.probabilities(heldout), names)
    plain = class_report(truth, softmax(model.logits(heldout)), names)
    report["uncalibrated"] = {name: plain[name] for name in ("brier", "expected_calibration_error")}
    report |= {
        "train_passages": len(texts),
        "train_documents": len(parts["train"]),
        "calibration_documents": len(parts["calibrate"]),
        "calibrated": bool(len(shift)),
    }
    if len(names) == 2:
        report["register"] = register_report(parts["train"], measured, model.scores(heldout), names)
    return model, report


def _split(examples: Sequence[Example], names: Sequence[str], config: LinearConfig, seed: int) -> dict[str, list[Example]]:
    """Documents that train, calibrate and measure: whole groups, each class with something on both sides."""
    parts: dict[str, list[Example]] = {"train": [], "calibrate": [], "heldout": []}
    home: dict[str, str] = {}  # a group with documents of several classes stays together
    for name in names:
        mine = [e for e in examples if e.label == name]
        members: dict[str, list[Example]] = {}
        for i, e in enumerate(mine):
            members.setdefault(e.group or f"\x1f{name}\x1f{i}", []).append(e)
        groups = sorted(members)
        if len(groups) < 2:
            raise UserError(
                f"The classifier needs at least 2 documents (or groups of them) of each class, found {len(groups)} of '{name}'."
            )
        order = [groups[int(i)] for i in stream(seed, "classifier split", name).permutation(len(groups))]
        wanted = {"heldout": config.heldout_share * len(mine), "calibrate": config.calibration_share * len(mine)}
        filled = dict.fromkeys(parts, 0)
        for group in order:
            filled[home.get(group, "train")] += len(members[group]) if group in home else 0
        for k, group in enumerate(order):
            if group not in home:
                first = k == 0 and not filled["heldout"]
                last = k == len(order) - 1 and not filled["train"]
                if first or (filled["heldout"] < wanted["heldout"] and not last):
                    home[group] = "heldout"
                elif filled["calibrate"] + 0.5 < wanted["calibrate"] and not last:
                    home[group] = "calibrate"
                else:
                    home[group] = "train"
                filled[home[group]] += len(members[group])
            parts[home[group]] += members[group]
        if not filled["train"] or not filled["heldout"]:
            raise UserError(
                f"Class '{name}' shares its groups with other classes: nothing of it is left to train on or to measure."
            )
    return parts


def _training_passages(
    examples: Sequence[Example], names: Sequence[str], config: LinearConfig, seed: int
) -> tuple[list[str], np.ndarray]:
    """At most ``max_passages`` of each class, drawn evenly over documents' passages, and their labels."""
    texts: list[str] = []
    labels: list[int] = []
    for i, name in enumerate(names):
        found = [passage for e in examples if e.label == name for passage in passages(e.text, config.passage_words)]
        chosen = sorted(int(k) for k in stream(seed, "classifier passages", name).permutation(len(found))[: config.max_passages])
        texts += [found[k] for k in chosen]
        labels += [i] * len(chosen)
    return texts, np.array(labels, np.int64)


def _calibrate(model: LinearModel, examples: Sequence[Example], shares: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and shift from documents that trained nothing."""
    truth = np.array([model.classes.index(e.label) for e in examples], np.int64)
    return fit_calibration(model.logits([e.text for e in examples]), truth, shares)


def register_report(
    training: Sequence[Example], measured: Sequence[Example], scores: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """How much of an AUC is register (layout and surface), and what is left of it among documents of one register.

    A logistic model of nine surface statistics (lengths, shares of marks, digits, capitals, line breaks) learns the same
    task. `surface_auc` is its AUC; `auc_within` compares only documents in the same fifth of its score, `pairs` of them.
    Where `auc_within` falls far below the classifier's AUC, the classifier mostly tells registers apart.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    features = scaler.fit_transform(np.array([surface(e.text) for e in training]))
    fit = LogisticRegression(class_weight="balanced", max_iter=1000).fit(features, [e.label == names[1] for e in training])
    found = fit.decision_function(scaler.transform(np.array([surface(e.text) for e in measured])))
    truth = np.array([e.label == names[1] for e in measured])
    strata = np.searchsorted(np.quantile(found, np.arange(1, _REGISTER_STRATA) / _REGISTER_STRATA), found)
    within, pairs = stratified_auc(truth, scores, strata)
    return {"surface_auc": auc(truth, found), "auc_within": within, "pairs": pairs}


def surface(text: str) -> list[float]:
    """Nine statistics of layout that say nothing of a document's content."""
    items, lines = text.split(), text.split("\n")
    n, length = max(len(items), 1), max(len(text), 1)
    marks = len(text) - sum(map(str.isalnum, text)) - sum(map(str.isspace, text))
    return [
        float(np.log1p(len(text))),
        sum(map(len, items)) / n,
        length / len(lines),
        marks / length,
        sum(map(str.isdigit, text)) / length,
        sum(map(str.isupper, text)) / length,
        sum(not line.strip() for line in lines) / len(lines),
        sum(line.startswith((" ", "\t")) for line in lines) / len(lines),
        sum(map(text.count, ".!?")) / n,
    ]


def _spread(parts: list[str], most: int) -> list[str]:
    """``most`` of the passages at equal distances, the first and the last among them."""
    if len(parts) <= most:
        return parts
    return [parts[i] for i in np.linspace(0, len(parts) - 1, most).round().astype(np.int64).tolist()]
