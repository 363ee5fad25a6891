"""`herd why ID`: what happened to one document, from a finished `herd curate`.

The ledger says what was decided, scores.parquet what was measured, the manifest which limits held.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.curation.pipeline.extract import partition_of
from herd.curation.urls import normalise_url
from herd.runs.stage import Artifact
from herd.runs.tables import open_table, shard_files

_PREFIX = re.compile(r"[0-9a-f]{1,16}(\.\d*)?")
_SHOWN = 20  # documents, or removed lines, that are listed
_TEXTS = ("id", "url", "language", "domain")


def explain(name: str, folder: Path) -> list[str]:
    """Lines for the reader about a document.

    Args:
        name: the beginning of an id, a URL, or the place of what never became a document (a file, a file and a line).
        folder: a finished `herd curate`.

    Raises:
        UserError: no such document, or several ids begin so.
    """
    if not name.strip():
        raise UserError("The name is empty: give an id, or its beginning, or a URL.")
    artifact = Artifact.open(folder)
    if artifact.manifest["stage"] != "curate":
        raise UserError(f"'{folder}' was made by `herd {artifact.manifest['stage']}`: give the folder of a `herd curate`.")
    ledger = shard_files(artifact / "ledger", "ledger")
    rows = _by_prefix(name, ledger) if _PREFIX.fullmatch(name) else []
    documents = {row["id"] for row in rows}
    if len(documents) > 1 and name not in documents:
        shown = ", ".join(f"{row['id']} ({row['url'] or 'no URL'})" for row in _firsts(rows)[:_SHOWN])
        raise UserError(f"{len(documents)} documents have an id that begins with '{name}': {shown}.")
    if len(documents) > 1:
        rows = [row for row in rows if row["id"] == name]
    rows = rows or _by_url(name, ledger) or _problems(name, artifact)
    if not rows:
        raise UserError(f"No document of '{folder}' has an id that begins with '{name}', or this URL.")
    lines: list[str] = []
    for first in _firsts(rows)[:_SHOWN]:
        own = [row for row in rows if row["id"] == first["id"]]
        lines += ["", *_document(own, artifact, ledger)] if lines else _document(own, artifact, ledger)
    return lines


def _firsts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each document."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["id"], row)
    return list(found.values())


def _by_prefix(prefix: str, ledger: list[Path]) -> list[dict[str, Any]]:
    """Rows of documents whose id begins so; only the shards that can hold them are read."""
    digits = prefix.partition(".")[0]
    low, high = int(digits.ljust(16, "0"), 16), int(digits.ljust(16, "f"), 16)
    shards = ledger[partition_of(low, len(ledger)) : partition_of(high, len(ledger)) + 1]
    return [row for path in shards for row in _matching(path, "id", prefix)]


def _by_url(url: str, ledger: list[Path]) -> list[dict[str, Any]]:
    """Rows of documents with this address: as it is written, else in its normal form."""
    exact = [row for path in ledger for row in _matching(path, "url", url, whole=True)]
    if exact:
        return exact
    wanted = normalise_url(url)
    found: list[dict[str, Any]] = []
    for path in ledger:
        for batch in open_table(path).iter_batches():
            urls = batch.column("url").to_pylist()
            same = [i for i, other in enumerate(urls) if other and normalise_url(other) == wanted]
            found += batch.take(same).to_pylist() if same else []
    return found


def _problems(name: str, artifact: Artifact) -> list[dict[str, Any]]:
    return _matching(artifact / "ledger/problems.parquet", "id", name, whole=True)


def _matching(path: Path, column: str, value: str, *, whole: bool = False) -> list[dict[str, Any]]:
    """Rows whose ``column`` is, or begins with, ``value``."""
    import pyarrow.compute as pc

    found: list[dict[str, Any]] = []
    for batch in open_table(path).iter_batches():
        texts = batch.column(column)
        found += batch.filter(pc.equal(texts, value) if whole else pc.starts_with(texts, value)).to_pylist()
    return found


def _document(rows: list[dict[str, Any]], artifact: Artifact, ledger: list[Path]) -> list[str]:
    """Its decisions in order, then its scores beside their limits."""
    first = rows[0]
    lines = [f"{first['id']}  {first['url']}".rstrip()]
    texts = _line_texts(artifact) if any(row["lines"] for row in rows) else {}
    for row in rows:
        lines.append(f"  {row['stage']:<10} {row['action']:<8} {row['rule']}{_measured(row)}{_detail(row)}")
        if row["duplicate_of"]:
            lines.append(f"{'':22}of {row['duplicate_of']}  {_fate(row['duplicate_of'], ledger)}")
        known = sorted(((line, *texts[line]) for line in row["lines"] if line in texts), key=lambda item: (-item[1], item[0]))
        lines += [f"{'':22}{copies:>7} copies: {text[:90]}" for _, copies, text in known[:_SHOWN]]
        more = len(row["lines"]) - len(known[:_SHOWN])
        if more:
            lines.append(f"{'':22}and {more} other lines")
    return [*lines, *_scores(first["id"], rows, artifact, len(ledger))]


def _measured(row: dict[str, Any]) -> str:
    if row["score"] is None or row["action"] == "kept":  # what a document is kept with stands among its scores
        return ""
    limit = "" if row["threshold"] is None else f" (limit {row['threshold']:.6g})"
    return f": {row['score']:.6g}{limit}"


def _detail(row: dict[str, Any]) -> str:
    return f"; {row['detail']}" if row["detail"] else ""


def _fate(name: str, ledger: list[Path]) -> str:
    """One line about another document: its URL and how it ended."""
    rows = [row for row in _by_prefix(name, ledger) if row["id"] == name]
    last = next((row for row in rows if row["action"] in ("kept", "dropped")), None)
    return "" if last is None else f"{last['url']} ({last['action']}: {last['rule']})".lstrip()


def _line_texts(artifact: Artifact) -> dict[int, tuple[int, str]]:
    table = open_table(artifact / "removed_lines.parquet").read()
    columns = (table[name].to_pylist() for name in ("line", "copies", "text"))
    return {line: (copies, text) for line, copies, text in zip(*columns, strict=True)}


def _scores(name: str, rows: list[dict[str, Any]], artifact: Artifact, shards: int) -> Iterator[str]:
    """Scores with their limits, in the order of the rules; those without a limit after them."""
    paths = shard_files(artifact / "scores", "scores")
    if not re.fullmatch(r"[0-9a-f]{16}(\.\d+)?", name):
        return
    found = _matching(paths[partition_of(int(name[:16], 16), shards)], "id", name, whole=True)
    if not found:
        yield "  no scores: it went before it was measured"
        return
    scores = found[0]
    config = artifact.manifest["config"]
    domain = next((row["rule"].removeprefix("routed_") for row in rows if row["rule"].startswith("routed_")), scores["domain"])
    limits = config["rules"][domain]
    broken = {row["rule"] for row in rows if row["action"] == "dropped"}
    yield f"  scores ({scores['language']}, rules of domain {domain})"
    free = []
    for statistic, value in scores.items():
        if statistic in _TEXTS or value is None:
            continue
        if isinstance(value, str):
            free.append(f"{statistic} {value}")
            continue
        low, high = limits.get(f"min_{statistic}"), limits.get(f"max_{statistic}")
        if low is None and high is None:
            free.append(f"{statistic} {value:.4g}")
            continue
        said = " and ".join(
            [*([f"at least {low:g}"] if low is not None else []), *([f"at most {high:g}"] if high is not None else [])]
        )
        mark = "  <- dropped for it" if broken & {f"min_{statistic}", f"max_{statistic}"} else ""
        yield f"    {statistic:<32} {value:<12.6g} {said}{mark}"
    yield f"    without limit: {', '.join(free)}"
