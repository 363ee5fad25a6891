"""Runs of Weights & Biases as rows: by the online API, or from the folders that offline runs leave.

Columns are dotted names: ``config.model.dim``, ``summary.loss``, and ``name``, ``id``, ``group``, ``state``, ``project``. An
offline run's ``run-ID.wandb`` is a log in LevelDB's format (a header of 7 bytes, then blocks of 32 KiB with records of a CRC-32,
a length, a type and data), whose records are protocol buffers of the wandb package.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.scaling.records.raw_tables import RawTable, text_of

_STATES = {"finished": "ok", "crashed": "failed", "failed": "failed", "killed": "failed", "preempted": "failed"}
_BLOCK, _MAGIC = 32768, b":W&B"


def read_wandb(source: str) -> RawTable:
    """Rows of a W&B project, or of every offline run below a folder.

    Args:
        source: a folder that exists, else ``ENTITY/PROJECT``.

    Raises:
        UserError: no package, no key, no such project, or a folder without readable offline runs.
    """
    runs = list(_offline(Path(source)) if Path(source).is_dir() else _online(source))
    rows = [{name: text_of(value) for name, value in _flat(run)} for run in runs]
    header = sorted({name for row in rows for name in row})
    labels = [f"run {row['name'] or row['id']}" for row in rows]
    return RawTable(header, [{name: row.get(name, "") for name in header} for row in rows], labels)


def default_columns(header: Sequence[str]) -> dict[str, str]:
    """Our column -> the run's dotted name, where nobody says: the run's name and state, and names equal to ours.

    The summary (what a run measured) goes before the config (what it was asked).
    """
    from herd.scaling.records.record import COLUMNS, TASK

    names = {"cell": "name", "status": "status", "error": "error"}
    for ours in COLUMNS:
        for theirs in (f"summary.{ours}", f"config.{ours}", f"config.cell.{ours}"):
            if theirs in header:
                names.setdefault(ours, theirs)
    tasks = [name for name in header if name.startswith(f"summary.{TASK}")]
    return names | {name.removeprefix("summary."): name for name in tasks}


def _flat(run: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and plain values; lists, tables and media are left out."""
    for key, value in run.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | bool) or value is None:
            yield f"{prefix}{key}", value


def _row(name: str, run_id: str, group: str, project: str, state: str, config: Any, summary: Any) -> dict[str, Any]:
    status = _STATES.get(state, "failed")  # a run that still trains has no final loss yet
    error = "" if status == "ok" else f"the W&B run is {state}"
    return {
        "name": name, "id": run_id, "group": group, "project": project, "state": state, "status": status, "error": error,
        "config": config, "summary": summary,
    }  # fmt: skip


def _online(source: str) -> Iterator[dict[str, Any]]:
    try:
        import wandb
        from wandb.errors import CommError, UsageError
    except ImportError as error:
        raise UserError("table=wandb:... needs the package wandb: `pip install wandb`.") from error
    if source.count("/") != 1:
        raise UserError(f"'wandb:{source}' is neither a folder nor ENTITY/PROJECT.")
    try:
        for run in wandb.Api(timeout=30).runs(source, order="+created_at"):
            summary = {key: value for key, value in dict(run.summary).items() if not key.startswith("_")}
            yield _row(run.name, run.id, run.group or "", run.project, run.state, dict(run.config), summary)
    except UsageError as error:
        raise UserError(
            f"Reading 'wandb:{source}' needs a W&B key: `wandb login`, or WANDB_API_KEY=KEY ({str(error).splitlines()[0][:100]})."
        ) from error
    except (CommError, ValueError) as error:
        raise UserError(f"W&B has no runs of '{source}' for this key: {str(error).splitlines()[0][:160]}") from error


def _offline(folder: Path) -> Iterator[dict[str, Any]]:
    files = sorted(folder.rglob("run-*.wandb"))
    if not files:
        raise UserError(f"'{folder}' holds no W&B runs (run-*.wandb): give the folder that has wandb/offline-run-* below it.")
    for file in files:
        yield read_offline_run(file)


def read_offline_run(file: Path) -> dict[str, Any]:
    """One ``run-ID.wandb``: name, id, group, project, state, status, error, config and summary.

    A run whose file has no end (killed, still running) has the state ``crashed`` and the summary of its last history row.

    Raises:
        UserError: not a W&B file, or damaged in the middle.
    """
    try:
        from wandb.proto.wandb_internal_pb2 import Record as Message  # type: ignore[attr-defined]
    except ImportError as error:
        raise UserError("table=wandb:... needs the package wandb: `pip install wandb`.") from error
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    run, state = None, "crashed"
    for data in _log_records(file):
        record = Message()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            _update(config, run.config.update)
        elif kind == "config":
            _update(config, record.config.update)
        elif kind == "summary":
            _update(summary, record.summary.update)
        elif kind == "history":  # the summary holds the last value of everything logged, unless told otherwise
            _update(summary, record.history.item)
        elif kind == "exit":
            state = "finished" if record.exit.exit_code == 0 else "failed"
    if run is None:
        raise UserError(f"'{file}' holds no W&B run: it ended before its first record.")
    kept = {key: value for key, value in summary.items() if not key.startswith("_")}
    config.pop("_wandb", None)
    return _row(run.display_name or run.run_id, run.run_id, run.run_group, run.project, state, config, kept)


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        path = list(item.nested_key) or [item.key]
        node = target
        for part in path[:-1]:
            child = node.get(part)
            node[part] = child if isinstance(child, dict) else {}
            node = node[part]
        node[path[-1]] = json.loads(item.value_json)


def _log_records(file: Path) -> Iterator[bytes]:
    """Records of a W&B log; a last one cut short by a crash is left out."""
    content = file.read_bytes()
    if content[:4] != _MAGIC:
        raise UserError(f"'{file}' is not a W&B run file.")
    parts = b""
    at = 7
    while at + 7 <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < 7:  # too short for a record's header: padding
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, at)
        data = content[at + 7 : at + 7 + length]
        if kind == 0 and length == 0:  # the rest of the block was never written
            at += left
            continue
        if len(data) < length:
            return
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) & 0xFFFFFFFF != checksum:
            raise UserError(f"'{file}' is damaged at byte {at}: copy it again from where it was written.")
        at += 7 + length
        parts = data if kind in (1, 2) else parts + data  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            yield parts
