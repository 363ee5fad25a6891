"""Linear quality classifier: does a passage look like reference prose or like a raw page?

The paper's first classifier asks whether Wikipedia would cite a page. The same construction without a download:
positives are passages of a reference text (by default the Python language reference that every interpreter carries),
negatives are passages of the raw pages before any cleaning. Hashed word 1- and 2-grams, logistic regression.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from herd.config.errors import UserError
from herd.curation.config import ClassifierConfig
from herd.runs.seeds import stream

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression


def reference_documents(path: str) -> list[str]:
    """Reference prose: a .txt file, a .jsonl file with a `text` field, a folder of .txt files; "" = Python's language reference.

    Raises:
        UserError: missing, empty or unreadable.
    """
    if not path:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise UserError("This Python comes without pydoc_data: set classifier.reference to a file of good prose.") from error
        return [str(topics[name]) for name in sorted(topics)]
    root = Path(path)
    if not root.exists():
        raise UserError(f"classifier.reference: {path} does not exist.")
    files = sorted(root.rglob("*.txt")) if root.is_dir() else [root]
    documents: list[str] = []
    try:
        for file in files:
            text = file.read_text(encoding="utf-8")
            lines = text.splitlines() if file.suffix == ".jsonl" else []
            documents += [str(json.loads(line)["text"]) for line in lines if line.strip()] if lines else [text]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"classifier.reference: {file} is not UTF-8 text, or a line has no `text` field.") from error
    if not any(document.strip() for document in documents):
        raise UserError(f"classifier.reference: {path} holds no text.")
    return documents


def chunks(text: str, size: int) -> list[str]:
    """Passages of ``size`` words; the last one may be shorter, but not shorter than half unless it is the only one."""
    items = text.split()
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    if len(parts) > 1 and len(parts[-1]) * 2 < size:
        parts.pop()
    return [" ".join(part) for part in parts]


class QualityClassifier:
    """Fit once, then score documents with numbers in (0, 1)."""

    def __init__(self, config: ClassifierConfig) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self.config = config
        self.vectorizer = HashingVectorizer(
            n_features=config.features,
            ngram_range=(1, 2),
            alternate_sign=False,
            token_pattern=r"\w+|[^\w\s]",
            norm="l2",
        )
        self.model: LogisticRegression | None = None

    def fit(self, reference: Sequence[str], raw: Sequence[str], seed: int) -> dict[str, float]:
        """Train on passages of both kinds; whole documents are set aside to measure.

        Returns:
            `auc` on held-out documents and the numbers of passages.

        Raises:
            UserError: fewer than two documents of either kind.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score

        if len(reference) < 2 or len(raw) < 2:
            raise UserError(
                f"The quality classifier needs at least 2 reference and 2 raw documents, found {len(reference)} and {len(raw)}: "
                "set classifier.enabled=false, or point classifier.reference elsewhere."
            )
        train: list[tuple[str, int]] = []
        heldout: list[tuple[str, int]] = []
        for label, documents in ((1, reference), (0, raw)):
            rng = stream(seed, "classifier", label)
            order = [int(i) for i in rng.permutation(len(documents))]
            aside = min(max(round(len(order) * self.config.heldout_share), 1), len(order) - 1)
            for part, indices, limit in (
                (heldout, order[:aside], int(self.config.max_chunks * self.config.heldout_share) + 1),
                (train, order[aside:], self.config.max_chunks),
            ):
                passages = [chunk for i in indices for chunk in chunks(documents[i], self.config.chunk_words)]
                chosen = sorted(int(i) for i in rng.permutation(len(passages))[:limit])
                part += [(passages[i], label) for i in chosen]
        if len({label for _, label in train}) < 2 or len({label for _, label in heldout}) < 2:
            raise UserError("The quality classifier found no words in its reference or in the raw pages.")
        self.model = LogisticRegression(C=1.0, class_weight="balanced", solver="liblinear", random_state=0)
        self.model.fit(self.vectorizer.transform([t for t, _ in train]), [label for _, label in train])
        scores = self._probabilities([text for text, _ in heldout])
        return {
            "auc": float(roc_auc_score([label for _, label in heldout], scores)),
            "train_passages": len(train),
            "heldout_passages": len(heldout),
        }

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Mean probability of a document's passages, (documents,) float32; 0 for a document without words."""
        parts = [chunks(text, self.config.chunk_words) for text in texts]
        flat = [chunk for part in parts for chunk in part]
        probabilities = self._probabilities(flat) if flat else np.empty(0)
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        means = [probabilities[end - len(part) : end].mean() if part else 0.0 for part, end in zip(parts, ends, strict=True)]
        return np.asarray(means, np.float32)

    def _probabilities(self, passages: Sequence[str]) -> np.ndarray:
        assert self.model is not None, "fit before score"
        return np.asarray(self.model.predict_proba(self.vectorizer.transform(passages))[:, 1])
