"""`herd import-rows`: dialogs or preferences of your own, as `herd sft`, `reward` and `dpo` read them.

Dialogs give what `inputs.dialogs.LABEL` of `herd sft` takes, with held-out prompts for its `inputs.heldout`; preferences what
`inputs.preferences` of `herd reward` and `herd dpo` take. Every row keeps the file and the line that it comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from herd.config.errors import UserError, nearest
from herd.curation.sources.config import SourceConfig
from herd.curation.sources.hub import commit_of, open_stream
from herd.dialog.formats import DIALOG_KINDS, PREFERENCE, RowFormat, Unusable, kind_of, read_dialog, read_preference
from herd.dialog.messages import Message, Role
from herd.dialog.rows import Counted, Prompt
from herd.dialog.tables import Row, read_table, table_files, without_nulls
from herd.runs.atomic import sha256_file
from herd.runs.progress import progress
from herd.runs.stage import Artifact, Inputs, Stage, StageRun

AUTO, REFUSE, DROP = "auto", "refuse", "drop"
_SHOWN = 5  # malformed rows named in the manifest


@dataclass(frozen=True)
class RowSource:
    """Where the rows are."""

    kind: str = "files"  # files, hub
    path: str = ""  # files: a .jsonl, .json or .parquet file, or a folder of them; hub: a data set's name
    subset: str = ""  # hub: configuration name, "" = the default one
    split: str = "train"  # hub: which split to read
    revision: str = ""  # hub: commit, tag or branch; "" = the newest commit, which needs the network at every start

    def __post_init__(self) -> None:
        if self.kind not in ("files", "hub"):
            raise UserError(f"source.kind: no '{self.kind}'.{nearest(self.kind, ('files', 'hub'))} Choices: files, hub.")


@dataclass(frozen=True)
class ImportRowsConfig:
    """Schema of conf/import-rows.yaml."""

    seed: int  # of the held-out split
    kind: str  # auto (by the first row's columns), messages, prompt_completion, alpaca, sharegpt, preference
    heldout_share: float  # of the prompts, by a hash: rows that begin with one question stay together
    malformed: str  # a row that cannot be read: refuse, or drop (counted)
    source: RowSource = field(default_factory=RowSource)
    format: RowFormat = field(default_factory=RowFormat)

    def __post_init__(self) -> None:
        kinds = (AUTO, PREFERENCE, *DIALOG_KINDS.names())
        if self.kind not in kinds:
            raise UserError(f"kind: no '{self.kind}'.{nearest(self.kind, kinds)} Choices: {', '.join(kinds)}.")
        if not 0.0 <= self.heldout_share < 1.0:
            raise UserError(f"heldout_share is a share in [0, 1), not {self.heldout_share}")
        if self.malformed not in (REFUSE, DROP):
            raise UserError(f"malformed must be {REFUSE} or {DROP}, not '{self.malformed}'")


def run(config: ImportRowsConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    counted, kind = Counted(), config.kind
    malformed: list[str] = []
    heldout = 0
    with Output(stage_run.folder) as output, progress("Reading rows", unit="rows") as bar:
        for file, number, where, read in _rows(config.source):
            bar.advance()
            try:
                row = config.format.rename(read())
                kind = kind_of(row, where) if kind == AUTO else kind
                source = {"file": file, "row": number} | ({"id": row["id"]} if isinstance(row.get("id"), str | int) else {})
                identity = f"{file}:{number}"
                if kind == PREFERENCE:
                    preference = read_preference(row, where, identity, config.format)
                    apart = is_heldout(question(preference.prompt), config.heldout_share, config.seed)
                    output.preference(preference.to_dict() | {"source": source}, apart)
                else:
                    messages = read_dialog(kind, row, where)
                    apart = is_heldout(question(messages), config.heldout_share, config.seed)
                    output.dialog(identity, messages, source, apart)
            except Unusable as reason:
                counted.drop(str(reason))
            except UserError as error:
                if config.malformed == REFUSE:
                    raise
                counted.drop("malformed")
                malformed += [str(error)] if len(malformed) < _SHOWN else []
            else:
                heldout += apart
                counted.kept += 1
        if not counted.kept:
            why = ", ".join(f"{reason} {count}" for reason, count in sorted(counted.dropped.items())) or "there is none"
            raise UserError(
                f"import-rows: no row of {config.source.path} is of use ({why}).{' ' + malformed[0] if malformed else ''}"
            )
        output.complete(kind)
    return {
        "kind": kind,
        "rows": counted.kept - heldout,
        "heldout_rows": heldout,
        "dropped_rows": sum(counted.dropped.values()),  # by reason: in `read`
        "read": counted.to_dict(),
        "malformed": malformed,
        "source": content(config)["source"],
    }


class Output:
    """The files of the result, made as their first row comes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.open = folder, ExitStack()
        self.files: dict[str, TextIO] = {}

    def __enter__(self) -> Output:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.open.close()
        if error is not None:  # the next attempt begins anew
            for name in self.files:
                (self.folder / name).unlink()

    def write(self, name: str, row: dict[str, Any]) -> None:
        """Append one row."""
        self.file(name).write(json.dumps(row, ensure_ascii=False) + "\n")

    def file(self, name: str) -> TextIO:
        """The open file of that name."""
        if name not in self.files:
            self.files[name] = self.open.enter_context((self.folder / name).open("w", encoding="utf-8"))
        return self.files[name]

    def preference(self, row: dict[str, Any], apart: bool) -> None:
        """A preference, as `herd preferences` writes it."""
        self.write("heldout.jsonl" if apart else "preferences.jsonl", row)

    def dialog(self, identity: str, messages: Sequence[Message], source: dict[str, Any], apart: bool) -> None:
        """A dialog; a held-out one that ends with a plain answer also as a prompt with its reference."""
        row = {"id": identity, "messages": [m.to_dict() for m in messages], "source": source}
        self.write("heldout_dialogs.jsonl" if apart else "dialogs.jsonl", row)
        last = messages[-1]
        if apart and len(messages) > 1 and last.role is Role.ASSISTANT and not last.calls:
            prompt = Prompt(identity, "", "open", tuple(messages[:-1]), last.content)
            self.write("heldout_prompts.jsonl", prompt.to_dict() | {"source": source})

    def complete(self, kind: str) -> None:
        """The files that the stages after this one look for, empty ones too."""
        for name in ("preferences.jsonl", "heldout.jsonl") if kind == PREFERENCE else ("dialogs.jsonl", "heldout_prompts.jsonl"):
            self.file(name)


def question(messages: Sequence[Message]) -> Sequence[Message]:
    """A dialog or prompt up to its first answer: those that begin alike belong to one side of the split, whatever their kind."""
    first = next((i for i, m in enumerate(messages) if m.role is Role.ASSISTANT), len(messages))
    return messages[:first] or messages[:1]


def is_heldout(prompt: Sequence[Message], share: float, seed: int) -> bool:
    """Whether a hash of the prompt falls into the held-out share: a pure function of text and seed."""
    text = json.dumps([seed, *(m.to_dict() for m in prompt)], ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) < share * 2**64


def _rows(source: RowSource) -> Iterator[tuple[str, int, str, Row]]:
    """File, number in it, place for messages, and reader of every row."""
    if source.kind == "files":
        for path in _files(source):
            name = _name(path, source)
            for (number, where), read in read_table(path):
                yield name, number, where, read
        return
    config = SourceConfig(kind="hub", path=source.path, subset=source.subset, split=source.split)
    commit = content_commit(source)
    name = f"{source.path}@{commit[:12]}/{source.split}" if commit else source.path
    rows = iter(open_stream(config, commit))
    number = 0
    while True:
        number += 1
        where = f"{name}, row {number}"
        try:
            row = next(rows, None)
        except Exception as error:  # the library raises a dozen kinds; each means that nothing more can be read
            raise UserError(f"{where}: cannot be read ({str(error).splitlines()[0] if str(error) else error!r})") from error
        if row is None:
            return
        yield name, number, where, partial(without_nulls, dict(row))


def _files(source: RowSource) -> list[Path]:
    if not source.path:
        raise UserError("source.path: give a file or folder, or with source.kind=hub the name of a data set.")
    return table_files(source.path)


def _name(path: Path, source: RowSource) -> str:
    return path.name if path == Path(source.path) else str(path.relative_to(source.path))


def content_commit(source: RowSource) -> str:
    """The commit of a data set of the hub; "" for a folder that stands in for one."""
    if not source.path:
        raise UserError("source.path: name the data set, e.g. source.path=HuggingFaceH4/ultrafeedback_binarized.")
    return "" if Path(source.path).is_dir() else commit_of(source.path, source.revision)


def content(config: ImportRowsConfig) -> dict[str, Any]:
    """What the rows were read from: digests of files, or the commit of a data set."""
    source = config.source
    if source.kind == "files":
        return {"source": {_name(path, source): sha256_file(path) for path in _files(source)}}
    return {"source": {"dataset": source.path, "commit": content_commit(source)}}


def show(artifact: Artifact) -> None:
    """What was kept, and what was dropped for which reason."""
    found = artifact.metrics
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in found["read"]["dropped"].items())
    print(
        f"{found['kind']}: {found['rows']:,} rows, {found['heldout_rows']:,} held out, {found['dropped_rows']:,} dropped", end=""
    )
    print(f" ({dropped})" if dropped else "")
    for line in found["malformed"]:
        print(f"  {line}")


STAGE = Stage(
    name="import-rows",
    version=3,
    config=ImportRowsConfig,
    run=run,
    summary="your own dialogs or preferences, from JSONL, Parquet or the hub",
    fingerprint=content,
    show=show,
)
