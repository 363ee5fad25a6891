"""Labelled documents to train classifiers on: from a file, or made of what a Python installation carries.

The built-in sets stay within one register each (source and docstrings of the same modules; docstrings with and without
formulas of the same packages; docstrings of library modules by subject), so that a classifier has to find more than layout.
They are small and about software: for the web, give a file of labels.
"""

import ast
import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from herd.config.errors import UserError, nearest
from herd.curation.classifiers.linear import Example, LinearConfig
from herd.curation.classifiers.topics import category_of
from herd.curation.text import key_hash

_MATHS_PACKAGES = ("numpy", "scipy", "sympy")
_FORMULA = re.compile(r":math:`[^`]+`|^[ \t]*\.\. math::", re.MULTILINE)
_MATHS_MARKERS = re.compile(r":math:|\.\. math::")  # how the label was found: not for the classifier to read
_SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "pydoc_data", "__pycache__", "encodings"}
)
_MIN_CHARACTERS = 300
_MAX_FILE = 400_000  # bytes of a source file that is read
_LIMIT = 600  # documents of a class that are collected


@dataclass(frozen=True)
class ClassifierTask:
    """One classifier of documents."""

    examples: str = ""  # JSONL file with fields text, label and maybe group; or python:code, python:maths, python:knowledge
    positive: str = ""  # of two classes, the one whose probability is the score; "" = the last in the alphabet
    model: LinearConfig = field(default_factory=LinearConfig)

    def classes(self, examples: list[Example]) -> list[str]:
        """Names of the classes, of two the positive one last.

        Raises:
            UserError: ``positive`` is no class.
        """
        names = sorted({e.label for e in examples})
        if self.positive and self.positive not in names:
            raise UserError(f"classifier.positive: '{self.positive}' is no label.{nearest(self.positive, names)}")
        return sorted(names, key=lambda name: (name == self.positive, name))


def load_examples(source: str) -> list[Example]:
    """Examples of a built-in set or of a file.

    Raises:
        UserError: no such set or file, or a line that is no labelled text.
    """
    if source.startswith("python:"):
        if source not in BUILT_IN:
            raise UserError(f"No built-in examples '{source}'.{nearest(source, BUILT_IN)} Choices: {', '.join(BUILT_IN)}.")
        return BUILT_IN[source]()
    path = Path(source)
    if not source or not path.is_file():
        raise UserError(f"classifier.examples: '{source}' is no file; give a JSONL file or one of {', '.join(BUILT_IN)}.")
    found = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  (named in the error)
                if line.strip():
                    row = json.loads(line)
                    text, label, group = row["text"], row["label"], row.get("group", "")
                    if not isinstance(text, str) or not isinstance(group, str) or not isinstance(label, str | int | bool):
                        raise TypeError("text and group must be strings, label a string or a number")
                    found.append(Example(text, str(label), group))
    except UnicodeDecodeError as error:
        raise UserError(f"classifier.examples: {path} is not UTF-8.") from error
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"classifier.examples: {path}, line {number} is no object with text and label ({error}).") from error
    if not found:
        raise UserError(f"classifier.examples: {path} holds no example.")
    return found


def code_examples() -> list[Example]:
    """`code`: source of the standard library without its docstrings; `prose`: those docstrings. One group a module."""
    found: list[Example] = []
    for name, path in _mixed(_library_files()):
        if len(found) >= 2 * _LIMIT:
            break
        source, tree = _parsed(path)
        if tree is None:
            continue
        docs = "\n\n".join(_docstrings(tree))
        found += [Example(docs, "prose", name)] if len(docs) >= _MIN_CHARACTERS else []
        bare = _without_docstrings(source, tree)
        found += [Example(bare, "code", name)] if len(bare) >= _MIN_CHARACTERS else []
    return found


def maths_examples() -> list[Example]:
    """Docstrings of numpy, scipy and sympy: `maths` has formulas, `other` has none. The markers of formulas are removed."""
    found: list[Example] = []
    counts = {"maths": 0, "other": 0}
    for name, path in _mixed(item for package in _MATHS_PACKAGES for item in _package_files(package)):
        if min(counts.values()) >= _LIMIT:
            break
        _, tree = _parsed(path)
        for doc in _docstrings(tree) if tree is not None else ():
            formulas = len(_FORMULA.findall(doc))
            label = "maths" if formulas >= 2 else "other"
            if len(doc) >= _MIN_CHARACTERS and formulas != 1 and counts[label] < _LIMIT:
                counts[label] += 1
                found.append(Example(_MATHS_MARKERS.sub("", doc), label, name))
    return found


def knowledge_examples() -> list[Example]:
    """Docstrings of the standard library's modules, and of scientific packages, by subject (see topics.py)."""
    found: list[Example] = []
    packages = [item for package in _MATHS_PACKAGES for item in _package_files(package)]
    counts: dict[str, int] = {}
    for name, path in _mixed([*_library_files(), *packages]):
        label = category_of(name)
        if label is None or counts.get(label, 0) >= _LIMIT // 10:
            continue
        _, tree = _parsed(path)
        docs = "\n\n".join(_docstrings(tree)) if tree is not None else ""
        if len(docs) >= _MIN_CHARACTERS:
            counts[label] = counts.get(label, 0) + 1
            top = name.partition(".")[0]
            found.append(Example(docs, label, name if top in _MATHS_PACKAGES else top))
    return found


BUILT_IN: dict[str, Callable[[], list[Example]]] = {
    "python:code": code_examples,
    "python:maths": maths_examples,
    "python:knowledge": knowledge_examples,
}


def _mixed(files: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """In the order of a hash of the name: a limit then takes a fair sample, not the beginning of the alphabet."""
    return sorted(files, key=lambda item: key_hash(item[0]))


def _library_files() -> Iterator[tuple[str, Path]]:
    """(module name, file) of the standard library, tests left out, in order of names."""
    yield from _files(Path(ast.__file__).parent, "", sys.stdlib_module_names)


def _package_files(package: str) -> list[tuple[str, Path]]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    return list(_files(Path(spec.origin).parent, f"{package}.", None))


def _files(root: Path, prefix: str, known: frozenset[str] | None) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _SKIPPED.intersection(parts) or (known is not None and parts[0].removesuffix(".py") not in known):
            continue
        yield prefix + ".".join(parts).removesuffix(".py").removesuffix(".__init__"), path


def _parsed(path: Path) -> tuple[str, ast.Module | None]:
    try:
        if path.stat().st_size > _MAX_FILE:
            return "", None
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return source, ast.parse(source)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
        return "", None


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings(tree: ast.Module) -> list[str]:
    return [doc for node in ast.walk(tree) if isinstance(node, _DOCUMENTED) and (doc := ast.get_docstring(node))]


def _without_docstrings(source: str, tree: ast.Module) -> str:
    lines = source.split("\n")
    gone: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) and isinstance(node.body[0], ast.Expr):
            gone.update(range(node.body[0].lineno - 1, node.body[0].end_lineno or node.body[0].lineno))
    return "\n".join(line for i, line in enumerate(lines) if i not in gone)
