"""``herd export-tokens``: our token shards in the formats of other trainers."""

import shutil
from dataclasses import dataclass, field
from typing import Any

from herd.config.errors import UserError, nearest
from herd.corpus.litdata_export import litdata_writer, write_litdata
from herd.corpus.megatron import write_megatron
from herd.corpus.shards import TokenShards
from herd.runs.progress import progress
from herd.runs.stage import Inputs, Stage, StageRun

FORMATS = ("megatron", "litdata")


@dataclass(frozen=True)
class ExportTokensConfig:
    """What `herd export-tokens` writes."""

    format: str = "megatron"  # megatron: .bin/.idx pairs; litdata: chunks of a StreamingDataset (extra `litdata`)
    splits: list[str] = field(default_factory=lambda: ["train", "heldout"])
    domains: list[str] = field(default_factory=list)  # empty = all that a split has
    chunk_bytes: int = 67_108_864  # litdata: size of a file, bytes

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"format: no '{self.format}'.{nearest(self.format, FORMATS)} Choices: {', '.join(FORMATS)}.")
        if not self.splits:
            raise UserError("splits: name at least one, e.g. splits=[train].")
        if self.chunk_bytes < 1:
            raise UserError(f"chunk_bytes must be 1 or more, not {self.chunk_bytes}.")


def run(config: ExportTokensConfig, inputs: Inputs, run: StageRun) -> dict[str, Any]:
    """Write ``<format>/<split>/<domain>`` (``.bin`` and ``.idx``, or a folder) for each split and domain."""
    if config.format == "litdata":
        litdata_writer()  # refuse before anything is written
    shards = TokenShards(inputs["tokens"] / "tokens")
    sources = {
        (split, domain): shards.source(split, domain)
        for split in config.splits
        for domain in config.domains or shards.domains(split)
    }
    out = run.folder / config.format
    shutil.rmtree(out, ignore_errors=True)  # what an interrupted attempt left
    with progress("Exporting", total=sum(s.entry["tokens"] for s in sources.values()), unit="tokens") as bar:
        for (split, domain), source in sources.items():
            if config.format == "megatron":
                write_megatron(source, out / split / domain, bar.advance)
            else:
                write_litdata(source, out / split / domain, config.chunk_bytes, bar.advance)
    tokens: dict[str, dict[str, int]] = {split: {} for split in config.splits}
    for (split, domain), source in sources.items():
        tokens[split][domain] = source.entry["tokens"]
    run.cost(tokens=sum(sum(part.values()) for part in tokens.values()))
    return {"format": config.format, "vocab_size": shards.vocab_size, "tokens": tokens}


STAGE = Stage(
    name="export-tokens",
    version=1,
    config=ExportTokensConfig,
    run=run,
    summary="token shards in the formats of other trainers",
    inputs=("tokens",),
)
