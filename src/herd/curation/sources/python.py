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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

from herd.curation.config import SourceConfig
from herd.curation.documents import RawEntry, Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import SOURCES, Collected, Context, Limits, Source
from herd.runs.progress import progress

_SCRIPT = Path(__file__).with_name("introspect.py")
_SHARDS = 4  # processes for the standard library's pages; fixed, since it must not follow `workers`
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


def collect_python(config: SourceConfig, context: Context) -> Collected:
    """Read this interpreter's documentation and library sources.

    The order and the content depend on the installation alone: each package is introspected in a process of its own, with a fixed
    hash seed, a minimal environment and no paths, addresses or values of variables in the output.
    """
    found = Collected()
    limits = Limits(config)
    modules = _spread(standard_modules())
    _add(found, limits, _multilingual())
    _add(found, limits, _sources(modules))
    wanted = config.limit_documents.get("general", 0)
    page_modules = [m for m in modules if not m.rpartition(".")[2].startswith("_")][: wanted or None]
    jobs = [
        {"mode": "pages", "package": "", "modules": sorted(m for m in page_modules if _bucket(m) == shard)}
        for shard in range(_SHARDS)
    ]
    jobs = [job for job in jobs if job["modules"]]
    jobs += [{"mode": "docstrings", "package": package, "modules": []} for package in config.maths_packages]
    jobs += [{"mode": "pages", "package": package, "modules": []} for package in config.general_packages]
    for rows in _introspect(jobs, config, context):
        _read(rows, found, limits)
    return found


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
    return hashlib.sha256(module.partition(".")[0].encode()).digest()[0] % _SHARDS


def _add(found: Collected, limits: Limits, records: Iterable[Record]) -> None:
    for record in records:
        if not limits.full(record.domain):
            limits.take(record)
            found.records.append(record)


def _multilingual() -> Iterable[Record]:
    """The bundled sample: one file a language, documents separated by lines of `%%`."""
    folder = resources.files("herd.curation") / "multilingual"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".txt")), key=lambda f: f.name)
    texts = [(f.name.removesuffix(".txt"), f.read_text(encoding="utf-8").split("\n%%\n")) for f in files]
    for number in range(max(len(parts) for _, parts in texts)):  # round robin, so that a limit keeps all languages
        for language, parts in texts:
            if number < len(parts):
                url = f"sample://{language}/{number + 1:02d}"
                yield Record(url, "", language, "multilingual", "python", "", "text", parts[number].strip() + "\n")


def _sources(modules: list[str]) -> Iterable[Record]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for module in modules:
        base = root.joinpath(*module.split("."))
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if path.is_file() and path.stat().st_size:
            group = "library:" + module.partition(".")[0].lstrip("_")
            url = f"source://{path.relative_to(root).as_posix()}"
            yield Record(url, "", "en", "code", "python", group, "code", path.read_bytes())


def _introspect(jobs: list[dict[str, Any]], config: SourceConfig, context: Context) -> Iterable[list[dict[str, Any]]]:
    """Run the jobs, ``workers`` at a time, and hand out their rows in the order of the jobs."""
    paths = sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path.home())} - {"/", "/root"}, key=len, reverse=True)

    def run(number: int) -> list[dict[str, Any]]:
        out = context.scratch / f"job_{number}.jsonl"
        description = context.scratch / f"job_{number}.json"
        description.write_text(json.dumps(jobs[number] | {"hide": paths, "out": str(out)}), encoding="utf-8")
        name = jobs[number]["package"] or "standard library"
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
        rows = []
        for line in out.read_text(encoding="utf-8").splitlines() if out.exists() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                assert detail, "a finished job wrote half a line"
        out.unlink(missing_ok=True)
        if detail:
            rows.append({"type": "problem", "module": name, "rule": "introspection_failed", "detail": detail})
        return rows

    with ThreadPoolExecutor(context.workers) as pool, progress("reading Python", len(jobs), "packages") as bar:
        for rows in pool.map(run, range(len(jobs))):
            bar.advance(1)
            yield rows


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


def _read(rows: list[dict[str, Any]], found: Collected, limits: Limits) -> None:
    """Turn the rows of one job into records, entries and problems."""
    pages: set[str] = set()
    for row in rows:
        package = row["module"].partition(".")[0]
        if row["type"] == "problem":
            found.problems.append(LedgerRow(row["module"], "collect", "dropped", row["rule"], detail=row["detail"]))
        elif row["type"] == "page":
            group = "library:" + package if package in sys.stdlib_module_names else "page:" + row["module"]
            record = Record(f"pydoc://{row['module']}", "", "en", "general", "python", group, "html", row["html"].encode("utf-8"))
            if not limits.full("general"):
                limits.take(record)
                found.records.append(record)
                pages.add(row["module"])
        elif row["module"] in pages:  # an object of a page
            name = f"{row['module']}.{row['name']}"
            found.entries.append(RawEntry(f"pydoc://{row['module']}", package, name, _signature(row), row["doc"]))
        elif not limits.full("maths"):
            record = docstring_record(row)
            limits.take(record)
            found.records.append(record)
            name = f"{row['module']}.{row['name']}"
            found.entries.append(RawEntry(record.url, package, name, _signature(row), row["doc"]))


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
    package = row["module"].partition(".")[0]
    text = f"{title}\n\n{doc.strip()}\n"
    return Record(f"docstring://{package}/{name}", "", "en", "maths", "python", f"name:{row['owner']}", "text", text)


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


SOURCES.register("python")(Source(collect_python, versions))
