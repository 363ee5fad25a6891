"""Run as a script in a fresh interpreter: write what a few modules document, as JSON lines.

`python -P introspect.py JOB.json`, with a job {"mode": "pages" | "docstrings", "package", "modules", "hide", "out"}.
Kept free of any import but the standard library, since importing a package changes what pydoc shows of others; one process
per package makes the pages independent of each other and survives a package that crashes, prints or hangs.

Lines written: {"type": "page", module, html}, {"type": "object", module, name, owner, signature, doc} and
{"type": "problem", module, rule, detail}.
"""

import contextlib
import functools
import importlib
import inspect
import io
import json
import pkgutil
import pydoc
import random
import re
import secrets
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

_REAL_SIGNATURE, _REAL_ATTRIBUTES = inspect.signature, pydoc.classify_class_attrs
_ADDRESS = re.compile(r"(?: |&nbsp;)at(?: |&nbsp;)0x[0-9a-fA-F]+")
_PLAIN = (bool, int, float, complex, type(None))
_SHOWABLE = (*_PLAIN, str, bytes, tuple, list, dict, frozenset, range, slice, type(...))
# Parts of module names that hold no documentation of their own, or act when imported.
_SKIPPED_PARTS = {"tests", "test", "testing", "conftest", "setup", "benchmarks", "distutils", "f2py", "externals"}
_SKIPPED_PARTS |= {"_build_utils", "pygletplot", "sphinxext", "__main__", "backends", "autolev", "_antlr"}


class _Shown:
    """Stands for a default value that could show this machine or this moment: an environment, an open file, a random state."""

    def __init__(self, value: Any) -> None:
        self.text = f"<{type(value).__name__}>"

    def __repr__(self) -> str:
        return self.text


@functools.lru_cache(maxsize=50_000)
def _signature(thing: Any) -> inspect.Signature:
    signature = _REAL_SIGNATURE(thing)
    parameters = []
    for parameter in signature.parameters.values():
        value = parameter.default
        known = value is parameter.empty or isinstance(value, _SHOWABLE) or callable(value)
        parameters.append(parameter if known else parameter.replace(default=_Shown(value)))
    return signature.replace(parameters=parameters)


def _cached_signature(thing: Any, *args: Any, **options: Any) -> inspect.Signature:
    """`inspect.signature`, remembered: pydoc asks again for each inherited method of each class."""
    if args or options or getattr(type(thing), "__hash__", None) is None:
        return _REAL_SIGNATURE(thing, *args, **options)
    try:
        return _signature(thing)
    except TypeError:  # no signature, or an object whose hash fails
        return _REAL_SIGNATURE(thing)


def _own_attributes(cls: type) -> list[tuple[str, str, Any, Any]]:
    """What the class itself defines: inherited members are on the page of the class that defines them."""
    return [row for row in _REAL_ATTRIBUTES(cls) if row[2] is cls]


@functools.lru_cache(maxsize=50_000)
def _preformat(text: str) -> str:
    return pydoc.HTMLDoc().preformat(text)


class _Pages(pydoc.HTMLDoc):
    """pydoc's pages without this machine: no file paths, no values of variables but plain numbers, no addresses."""

    def preformat(self, text: str) -> str:
        return _preformat(text)

    def heading(self, title: str, extras: str = "") -> str:
        return super().heading(title)  # without links to the index and the file

    def filelink(self, url: str, path: str) -> str:
        return ""

    def docother(self, object: Any, name: str | None = None, mod: str | None = None, *ignored: Any) -> str:
        if not isinstance(object, _PLAIN):
            return f"<dl><dt><strong>{name}</strong></dt></dl>\n" if name else ""
        return super().docother(object, name, mod, *ignored)


def public_modules(package: str) -> list[str]:
    """The package and its public modules, sorted."""
    root = importlib.import_module(package)
    names = [package]
    for info in pkgutil.walk_packages(getattr(root, "__path__", []), package + ".", onerror=lambda name: None):
        parts = info.name.split(".")
        if not any(part.startswith("_") or part in _SKIPPED_PARTS for part in parts):
            names.append(info.name)
    return sorted(names)


def signature_of(thing: Any) -> str:
    """`(a, b=1)` without self, annotations of the result and addresses; "" when the interpreter knows none."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError, AttributeError, NameError, SyntaxError, RecursionError):
        return ""
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name in ("self", "cls") and not inspect.isclass(thing):
        parameters = parameters[1:]
    try:
        text = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    except Exception:  # a default value whose repr fails
        return ""
    return _ADDRESS.sub("", text)


def documented(module: types.ModuleType, package: str, seen: dict[int, Any]) -> Iterator[dict[str, str]]:
    """Functions, classes and methods that ``module`` presents as its own, each object once per process."""
    everything = getattr(module, "__all__", None)
    names = everything if isinstance(everything, list | tuple) else [n for n in dir(module) if n[:1] != "_"]
    for name in sorted({str(n) for n in names} - {"test"}):  # packages of the numpy family offer their test runner
        try:
            thing = getattr(module, name)
        except Exception:  # lazily loaded attributes that need an absent package
            continue
        home = getattr(thing, "__module__", None) or ""
        foreign = home.split(".")[0] not in ("", package, "builtins") if package else home not in (module.__name__, "")
        if inspect.ismodule(thing) or not callable(thing) or (foreign and everything is None) or id(thing) in seen:
            continue
        seen[id(thing)] = thing  # kept alive, so that its id stays taken
        yield from _row(module, name, name, thing)
        if not inspect.isclass(thing):
            continue
        for key in sorted(vars(thing)):
            member = vars(thing)[key]
            function = getattr(member, "__func__", member)
            if key.startswith("_") or not callable(function) or inspect.isclass(function) or id(function) in seen:
                continue
            seen[id(function)] = function
            yield from _row(module, f"{name}.{key}", name, function)


def _row(module: types.ModuleType, name: str, owner: str, thing: Any) -> Iterator[dict[str, str]]:
    doc = getattr(thing, "__doc__", None)
    if isinstance(doc, str) and doc.strip():
        row = {"type": "object", "module": module.__name__, "name": name, "owner": owner}
        yield row | {"signature": signature_of(thing), "doc": _ADDRESS.sub("", inspect.cleandoc(doc))}


def page(module: types.ModuleType, hidden: list[str]) -> str:
    """The page that `python -m pydoc -b` would serve for ``module``, without paths of this machine."""
    documenter = _Pages()
    html = documenter.page(module.__name__, documenter.document(module, module.__name__))
    html = _ADDRESS.sub("", html)
    for path in hidden:
        html = html.replace(path, "")
    return html


def main(job_path: str) -> None:
    """Run one job; problems with single modules are lines of the output."""
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(10_000)
    if job["package"]:
        # Some docstrings hold examples drawn when their module is imported: let them be the same in every run.
        secrets.randbits = lambda k: 20240407 % 2**k
        random.seed(0)
    inspect.signature = _cached_signature  # type: ignore[assignment]
    pydoc.classify_class_attrs = _own_attributes  # type: ignore[assignment]
    # Comments in place of missing docstrings cost a third of the time, for little.
    inspect.getcomments = lambda thing: None  # type: ignore[assignment]
    with open(job["out"], "w", encoding="utf-8", errors="replace") as out:

        def write(row: dict[str, Any]) -> None:
            out.write(json.dumps(row) + "\n")

        modules: list[str] = job["modules"]
        if not modules:
            try:
                modules = public_modules(job["package"])
            except BaseException as error:
                detail = f"{type(error).__name__}: {error}"[:200]
                write({"type": "problem", "module": job["package"], "rule": "import_failed", "detail": detail})
                return
        seen: dict[int, Any] = {}
        for name in modules:
            silent = io.StringIO()
            try:
                with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
                    module = importlib.import_module(name)
                    rows: list[dict[str, Any]] = []
                    if job["mode"] == "pages":
                        rows.append({"type": "page", "module": name, "html": page(module, job["hide"])})
                    rows.extend(documented(module, job["package"], seen))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit too: some modules exit when a system part is missing
                detail = f"{type(error).__name__}: {error}"[:200]
                rows = [{"type": "problem", "module": name, "rule": "import_failed", "detail": detail}]
            for row in rows:
                write({key: without(value, job["hide"]) for key, value in row.items()})


def without(value: Any, paths: list[str]) -> Any:
    """Text without this machine's folders, which show in defaults such as sys.executable: equal pages on every machine."""
    if isinstance(value, str):
        for path in paths:
            value = value.replace(path, "")
    return value


if __name__ == "__main__":
    main(sys.argv[1])
