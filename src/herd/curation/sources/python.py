"""Source `python`: any Python installation as a small web of four domains, with nothing bundled but a multilingual sample.

general: pages that pydoc renders for the standard library and some installed packages; maths: docstrings of numpy, scipy and
sympy; code: module sources of the standard library; multilingual: original texts that come with herd.
"""

import hashlib
import json
import os
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from herd.curation.documents import RawEntry, Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import SOURCES, Context, Found, Shard, Source
from herd.curation.sources.config import SourceConfig
from herd.runs.progress import progress

_SCRIPT = Path(__file__).with_name("introspect.py")
_SAMPLE, _LIBRARY = "multilingual sample", "library sources"  # keys of the two shards that need no introspection
_PARTS = 4  # processes for the standard library's pages; fixed, since it must not follow `workers`
# Top-level names that act when imported, open windows, are tests, or hold generated tables.
_LEFT_OUT = {
    "antigravity",
    "this",
    "idlelib",
    "lib2to3",
    "test",
    "turtledemo",
    "turtle",
    "tkinter",
    "ensurepip",
    "pydoc_data",
}
_LEFT_OUT |= {
    "site-packages",
    "dist-packages",
    "__phello__",
    "__pycache__",
    "_pyrepl",
    "msilib",
    "distutils",
    "encodings",
}
_LEFT_OUT_PARTS = {"tests", "test", "__main__", "idle_test", "__pycache__"}


def python_shards(config: SourceConfig, context: Context) -> list[Shard]:
    """The bundled sample, the library's sources, and a file of findings for each interpreter that was started.

    The content depends on the installation alone: each package is introspected in a process of its own, with a fixed hash seed,
    a minimal environment and no paths, addresses or values of variables in the output. The findings stay in ``context.scratch``,
    where the shards are read from; those of an earlier attempt are used again.
    """
    modules = _spread(standard_modules())
    wanted = config.limit_documents.get("general", 0)
    page_modules = [m for m in modules if not m.rpartition(".")[2].startswith("_")][: wanted or None]
    parts = [sorted(m for m in page_modules if _bucket(m) == part) for part in range(_PARTS)]
    jobs = [_job("pages", f"library-{i}", "", part) for i, part in enumerate(parts) if part]
    jobs += [_job("docstrings", package, package, []) for package in config.maths_packages]
    jobs += [_job("pages", package, package, []) for package in config.general_packages]
    _introspect(jobs, config, context)
    return [Shard(_SAMPLE), Shard(_LIBRARY), *(Shard(f"{job['mode']}:{job['name']}", _file_name(job)) for job in jobs)]


def read_python(shard: Shard, config: SourceConfig, context: Context) -> Iterator[Found]:
    """Records of one shard: bundled texts, module sources, or what an interpreter wrote down."""
    if shard.key == _SAMPLE:
        yield from _multilingual()
    elif shard.key == _LIBRARY:
        yield from _sources(_spread(standard_modules()))
    else:
        pages = shard.key.startswith("pages:")
        for number, row in enumerate(_rows(context.scratch / shard.name), start=1):
            if row["type"] == "problem":
                yield LedgerRow(row["module"], "collect", "dropped", row["rule"], detail=row["detail"])
            elif row["type"] == "page":
                yield _page(row, shard, number)
            elif not pages:
                yield replace(docstring_record(row), file=shard.key, position=number)


def python_entries(shard: Shard, config: SourceConfig, context: Context) -> Iterator[RawEntry]:
    """Documented functions of one shard, those of pages and docstrings that a limit left out included."""
    for row in _rows(context.scratch / shard.name) if shard.name else ():
        if row["type"] == "object":
            name, package = f"{row['module']}.{row['name']}", row["module"].partition(".")[0]
            url = f"pydoc://{row['module']}" if shard.key.startswith("pages:") else _docstring_url(row)
            yield RawEntry(url, package, name, _signature(row), row["doc"])


def standard_modules() -> list[str]:
    """Names of the standard library's modules, packages included, sorted; built-in ones too."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = {name for name in sys.stdlib_module_names if name not in _LEFT_OUT}
    names = {name for name in names if name in sys.builtin_module_names or not name.startswith("_")}
    for folder, folders, files in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        folders[:] = [f for f in folders if f not in _LEFT_OUT_PARTS and (parts or f in sys.stdlib_module_names - _LEFT_OUT)]
        for module in (file.removesuffix(".py") for file in files if file.endswith(".py")):
            path = parts if module == "__init__" else (*parts, module)
            if path and path[0] in sys.stdlib_module_names - _LEFT_OUT and module not in _LEFT_OUT_PARTS:
                names.add(".".join(path))
    return sorted(names)


def _spread(names: Iterable[str]) -> list[str]:
    """A fixed order without alphabet or size in it, so that a limit takes a fair sample."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _bucket(module: str) -> int:
    return hashlib.sha256(module.partition(".")[0].encode()).digest()[0] % _PARTS


def _multilingual() -> Iterator[Record]:
    """The bundled sample: one file a language, documents separated by lines of `%%`."""
    folder = resources.files("herd.curation") / "multilingual"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".txt")), key=lambda f: f.name)
    texts = [(f.name.removesuffix(".txt"), f.read_text(encoding="utf-8").split("\n%%\n")) for f in files]
    for number in range(max(len(parts) for _, parts in texts)):  # round robin, so that a limit keeps all languages
        for language, parts in texts:
            if number < len(parts):
                url, text = f"sample://{language}/{number + 1:02d}", parts[number].strip() + "\n"
                yield Record(url, "", language, "multilingual", "python", "", "text", text, f"{language}.txt", number + 1)


def _sources(modules: list[str]) -> Iterator[Record]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for module in modules:
        base = root.joinpath(*module.split("."))
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if path.is_file() and path.stat().st_size:
            group = "library:" + module.partition(".")[0].lstrip("_")
            name = path.relative_to(root).as_posix()
            yield Record(f"source://{name}", "", "en", "code", "python", group, "code", path.read_bytes(), name)


def _job(mode: str, name: str, package: str, modules: list[str]) -> dict[str, Any]:
    """What one interpreter is asked for: the pages or docstrings of a package, or of some modules."""
    return {"mode": mode, "name": name, "package": package, "modules": modules}


def _file_name(job: dict[str, Any]) -> str:
    return f"{job['mode']}-{job['name']}.jsonl"


def _introspect(jobs: list[dict[str, Any]], config: SourceConfig, context: Context) -> None:
    """Run the jobs that have no file of findings yet, ``workers`` at a time."""
    paths = sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path.home())} - {"/", "/root"}, key=len, reverse=True)

    def run(job: dict[str, Any]) -> None:
        final = context.scratch / _file_name(job)
        out, description = final.with_suffix(".partial"), final.with_suffix(".json")
        description.write_text(json.dumps(job | {"hide": paths, "out": str(out)}), encoding="utf-8")
        command = [sys.executable, "-P", "-W", "ignore", str(_SCRIPT), str(description)]
        quiet = subprocess.DEVNULL
        detail = ""
        try:
            code = subprocess.run(
                command, env=_environment(context.scratch), cwd=context.scratch, timeout=config.timeout_seconds,
                stdin=quiet, stdout=quiet, stderr=quiet, check=False,
            ).returncode  # fmt: skip
            if code:
                detail = f"the process that read it ended with status {code}"
        except subprocess.TimeoutExpired:
            detail = f"not read within source.timeout_seconds = {config.timeout_seconds}"
        if detail:
            # It died in the middle: its last line may be half a line.
            whole = out.read_text(encoding="utf-8").rpartition("\n")[0] if out.exists() else ""
            name = job["package"] or "standard library"
            row = {"type": "problem", "module": name, "rule": "introspection_failed", "detail": detail}
            out.write_text("".join(f"{line}\n" for line in (*whole.splitlines(), json.dumps(row))), encoding="utf-8")
        os.replace(out, final)

    waiting = [job for job in jobs if not (context.scratch / _file_name(job)).exists()]
    with ThreadPoolExecutor(context.workers) as pool, progress("reading Python", len(waiting), "packages") as bar:
        for _ in pool.map(run, waiting):
            bar.advance(1)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _environment(scratch: Path) -> dict[str, str]:
    """Only what an interpreter needs to find its packages: nothing of the user's environment can reach a page."""
    kept = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
    own = {"HOME": str(scratch), "TMPDIR": str(scratch), "MPLCONFIGDIR": str(scratch), "MPLBACKEND": "Agg", "TZ": "UTC"}
    own |= {
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "LC_ALL": "C",
        "COLUMNS": "80",
        "PYTHONUSERBASE": site.getuserbase(),
    }
    own |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {name: os.environ[name] for name in kept if name in os.environ} | own


def _page(row: dict[str, Any], shard: Shard, number: int) -> Record:
    package = row["module"].partition(".")[0]
    group = "library:" + package if package in sys.stdlib_module_names else "page:" + row["module"]
    url, content = f"pydoc://{row['module']}", row["html"].encode("utf-8")
    return Record(url, "", "en", "general", "python", group, "html", content, shard.key, number)


def _docstring_url(row: dict[str, Any]) -> str:
    return f"docstring://{row['module'].partition('.')[0]}/{row['module']}.{row['name']}"


def _signature(row: dict[str, Any]) -> str:
    """`name(a, b=1)`: from the interpreter, else from the docstring's first line, as numpy's ufuncs write it."""
    last = row["name"].rpartition(".")[2]
    if row["signature"]:
        return last + row["signature"]
    first = row["doc"].partition("\n")[0].strip()
    return first.partition(" -> ")[0] if first.startswith(last + "(") and ")" in first else ""


def docstring_record(row: dict[str, Any]) -> Record:
    """A docstring as a document: qualified name with its signature, a blank line, the text.

    A class and its methods form one group, and so do functions of the same name in different packages (numpy.fft.fft and
    scipy.fft.fft explain the same thing), so that neither is held out while the other is trained on.
    """
    name = f"{row['module']}.{row['name']}"
    doc = row["doc"]
    last = row["name"].rpartition(".")[2]
    if not row["signature"] and doc.startswith(last + "("):
        head, _, doc = doc.partition("\n")
        title = name + head[len(last) :]
    else:
        title = name + row["signature"]
    text = f"{title}\n\n{doc.strip()}\n"
    return Record(_docstring_url(row), "", "en", "maths", "python", f"name:{row['owner']}", "text", text)


_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "PyYAML"}  # where the names differ


def versions(config: SourceConfig) -> dict[str, Any]:
    """Versions of the interpreter and of the packages that are read ("" when one is not installed)."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": sys.version}
    for package in [*config.general_packages, *config.maths_packages]:
        try:
            found[package] = version(_DISTRIBUTIONS.get(package, package))
        except PackageNotFoundError:
            found[package] = ""
    return found


SOURCES.register("python")(Source(python_shards, read_python, versions, python_entries))
