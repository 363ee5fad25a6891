"""``herd import``: a Hugging Face or Meta checkpoint as a finished stage, with ``model/`` and ``tokenizer/`` as ours.

Weights go through memory one tensor at a time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from herd.config.errors import UserError, nearest
from herd.corpus.tiktoken_file import read_tiktoken
from herd.corpus.tokenizer import Tokenizer
from herd.interchange.export import DTYPES, require_vocabulary
from herd.model.counts import parameter_count
from herd.model.hf_folder import open_hf_folder
from herd.model.io import CONFIG_FILE, Checkpoint, write_model
from herd.model.meta_folder import PARAMS_FILE, open_meta_folder
from herd.runs.atomic import sha256_file
from herd.runs.progress import progress
from herd.runs.stage import Inputs, Stage, StageRun

_READ = ("*.json", "*.safetensors", "consolidated.*.pth", "tokenizer.model")  # what may be read of a source


@dataclass(frozen=True)
class ImportConfig:
    """What `herd import` reads."""

    source: str = ""  # folder: Hugging Face's (config.json, safetensors) or Meta's (params.json, consolidated.00.pth)
    dtype: str = "fp32"  # of the weights: fp32, as training here wants them; keep, bf16, fp16
    tokenizer: bool = True  # take the tokenizer too; without one the result is a model alone
    max_seq_len: int = 0  # Meta's layout alone: longest position + 1; 0 = 131,072 with scaled RoPE, else 8,192
    rope_factor: float = 8.0  # Meta's layout alone: of the scaled RoPE (Llama 3.1: 8; Hugging Face's Llama 3.2: 32)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype: no '{self.dtype}'.{nearest(self.dtype, DTYPES)} Choices: {', '.join(DTYPES)}.")
        if self.max_seq_len < 0:
            raise UserError(f"max_seq_len must be 0 or more, not {self.max_seq_len}.")


def run(config: ImportConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``model/`` and ``tokenizer/`` into the stage's folder."""
    folder, layout = _layout(config.source)
    if layout == "meta":
        found = open_meta_folder(folder, config.max_seq_len, config.rope_factor)
    else:
        found = open_hf_folder(folder)
    model = found.cast(DTYPES[config.dtype])
    if config.tokenizer:
        tokenizer = _tokenizer(folder)
        require_vocabulary(model, tokenizer)
        tokenizer.save(stage_run.folder / "tokenizer")
    with progress("Importing", total=len(model.specs), unit="tensors") as bar:

        def read(name: str) -> torch.Tensor:
            bar.advance()
            return model.read(name)

        write_model(stage_run.folder / "model", Checkpoint(model.kind, model.config, model.specs, read))
    return {
        "layout": layout,
        "kind": model.kind,
        "parameters": parameter_count(model.config, "total"),
        "vocab_size": model.config.vocab_size,
        "max_seq_len": model.config.max_seq_len,
    }


def _layout(source: str) -> tuple[Path, str]:
    """The folder and whose it is: "hugging face" or "meta"; UserError when it is neither's."""
    if not source:
        raise UserError("source is not set: give source=FOLDER, with Hugging Face's config.json or Meta's params.json.")
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"source: '{folder}' is no folder.")
    if (folder / PARAMS_FILE).is_file():
        return folder, "meta"
    if (folder / CONFIG_FILE).is_file():
        return folder, "hugging face"
    raise UserError(f"source: '{folder}' has neither {CONFIG_FILE} (Hugging Face) nor {PARAMS_FILE} (Meta).")


def _tokenizer(folder: Path) -> Tokenizer:
    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder)
        return read_tiktoken(folder / "tokenizer.model")
    except UserError as error:
        raise UserError(f"{error} Or import the weights alone with tokenizer=false.") from error


def content(config: ImportConfig) -> dict[str, str]:
    """Digest of every file that may be read: the result depends on what the source holds, not on where it lies."""
    folder, _ = _layout(config.source)
    files = sorted({path for pattern in _READ for path in folder.glob(pattern) if path.is_file()})
    with progress("Hashing the source", total=sum(path.stat().st_size for path in files), unit="bytes") as bar:
        digests = {}
        for path in files:
            digests[path.name] = sha256_file(path)
            bar.advance(path.stat().st_size)
    return digests


STAGE = Stage(
    name="import",
    version=1,
    config=ImportConfig,
    run=run,
    summary="a Hugging Face or Meta checkpoint as a model of ours",
    fingerprint=content,
    execution=("source",),
)
