"""Linear classifiers on what a Python installation carries: held-out AUC, calibration, what the register tells, speed.

    python benchmarks/curation/classifiers.py

Each set of examples stays within one register but for `quality` (the language reference against rendered pages of modules),
whose `register` shows how little its AUC says. Times are processor seconds: other work on the machine does not count.
"""

import importlib
import pydoc
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save

from herd.curation.classifiers.examples import ClassifierTask, load_examples
from herd.curation.classifiers.linear import Example, LinearConfig, passages, train
from herd.curation.classifiers.quality import CLASSES, reference_documents

_SPEED_TEXTS = 200


def quality_examples() -> list[Example]:
    """Topics of the language reference against the pages of documented modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pages = []
        for name in sorted(sys.stdlib_module_names):
            if not name.startswith(("_", "idlelib", "turtle", "tkinter", "test", "antigravity", "this", "lib2to3")):
                try:
                    pages.append(pydoc.plain(pydoc.render_doc(importlib.import_module(name))))
                except Exception:  # a module of another platform
                    continue
    return [Example(t, CLASSES[1]) for t in reference_documents("")] + [Example(t, CLASSES[0]) for t in pages]


def measure(examples: list[Example], task: ClassifierTask, classes: list[str]) -> dict[str, Any]:
    """Train once, score some documents; plain values."""
    started = time.process_time()
    model, report = train(examples, task.model, 0, classes)
    seconds = time.process_time() - started
    texts = [e.text for e in examples[:: max(1, len(examples) // _SPEED_TEXTS)]]
    started = time.process_time()
    model.probabilities(texts)
    scoring = time.process_time() - started
    read = sum(sum(map(len, passages(t, task.model.passage_words)[: task.model.max_scored])) for t in texts)
    return report | {
        "train_seconds": seconds,
        "documents_per_second": len(texts) / scoring,
        "megabytes_per_second": read / scoring / 1e6,
    }


def main() -> None:
    results: dict[str, Any] = {}
    plain, characters = LinearConfig(max_passages=1500), LinearConfig(max_passages=1500, character_ngrams=[3, 4])
    sets: dict[str, tuple[list[Example], str]] = {"quality": (quality_examples(), CLASSES[1])}
    for name, positive in (("code", "code"), ("maths", "maths"), ("knowledge", "")):
        sets[name] = (load_examples(f"python:{name}"), positive)
    for name, (examples, positive) in sets.items():
        for features, config in (("words", plain), ("words and characters", characters))[: 2 if name == "maths" else 1]:
            task = ClassifierTask(name, positive, config)
            found = measure(examples, task, task.classes(examples))
            results.setdefault(name, {})[features] = found
            facts = {k: found.get(k) for k in ("documents", "accuracy", "most_frequent_class", "auc", "auc_interval", "register")}
            print(name, features, facts, f"calibration error {found['expected_calibration_error']:.3f}", end=" ")
            print(f"(without calibration {found['uncalibrated']['expected_calibration_error']:.3f}),", end=" ")
            print(f"{found['documents_per_second']:.0f} documents/s, {found['megabytes_per_second']:.2f} MB/s", flush=True)
    print(save(__file__, "python benchmarks/curation/classifiers.py", results))


if __name__ == "__main__":
    main()
