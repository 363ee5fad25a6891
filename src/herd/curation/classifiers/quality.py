"""Quality: does a document read like reference prose or like a raw page?

The paper's first classifier asks whether Wikipedia would cite a page. The same construction without a download: positives
are reference texts (by default the Python language reference that every interpreter carries), negatives the raw pages before
any cleaning.

What its AUC means: reference prose and raw pages differ in register (layout, menus, signatures) before they differ in
quality, so an AUC near 0.99 mostly says that registers were told apart. The report therefore holds `register`: the AUC that
nine statistics of layout reach alone, and the classifier's AUC among documents of like layout, which is the harder and more
honest figure. Labels for quality itself come from people or a larger model: a file of them, or `herd distill-classifier`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.config.errors import UserError
from herd.curation.classifiers.linear import Example, LinearConfig, LinearModel, train

if TYPE_CHECKING:
    from herd.curation.config import ClassifierConfig

CLASSES = ("raw", "reference")


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


def linear_config(config: "ClassifierConfig") -> LinearConfig:
    """The linear model behind the settings of `herd curate`."""
    return LinearConfig(
        features=config.features,
        passage_words=config.chunk_words,
        max_passages=config.max_chunks,
        heldout_share=config.heldout_share,
    )


class QualityClassifier:
    """Fit once, then score documents with numbers in (0, 1)."""

    def __init__(self, config: "ClassifierConfig", model: LinearModel | None = None) -> None:
        self.config, self.model = config, model

    def fit(self, reference: Sequence[str], raw: Sequence[str], seed: int) -> dict[str, Any]:
        """Train on passages of both kinds; whole documents are set aside to calibrate and to measure.

        Returns:
            The report of :func:`herd.curation.classifiers.linear.train`: `auc` on held-out documents with its interval,
            calibration, precision and recall, `register`.

        Raises:
            UserError: fewer than two documents of either kind, or no words in them.
        """
        if len(reference) < 2 or len(raw) < 2:
            raise UserError(
                f"The quality classifier needs at least 2 reference and 2 raw documents, found {len(reference)} and {len(raw)}: "
                "set classifier.enabled=false, or point classifier.reference elsewhere."
            )
        examples = [Example(t, CLASSES[1]) for t in reference] + [Example(t, CLASSES[0]) for t in raw]
        self.model, report = train(examples, linear_config(self.config), seed, CLASSES)
        return report

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of being reference prose, (documents,) float32; 0 for a document without words."""
        assert self.model is not None, "fit or load before score"
        found = self.model.scores(texts)
        found[[not text.strip() for text in texts]] = 0.0
        return found

    def save(self, path: Path) -> None:
        """One .npz file without pickle."""
        assert self.model is not None, "fit before save"
        self.model.save(path)

    @classmethod
    def load(cls, config: "ClassifierConfig", path: Path) -> "QualityClassifier":
        """A fitted classifier that :meth:`save` wrote; UserError when the file is something else."""
        return cls(config, LinearModel.load(path))
