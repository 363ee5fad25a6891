"""``herd export``: a model as a folder that Hugging Face's AutoModel and AutoTokenizer load, without any code of ours."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from herd.config.errors import UserError, nearest
from herd.corpus.special_tokens import BEGIN_OF_TEXT, END_OF_TEXT, PAD
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.dialects import DIALECTS
from herd.dialog.hf_template import chat_template
from herd.model.convert import CAUSAL_LM, CLASSIFIER
from herd.model.counts import parameter_count
from herd.model.hf_folder import write_hf_folder
from herd.model.io import REWARD, Checkpoint, open_model
from herd.runs.atomic import fsync_folder, write_json
from herd.runs.locate import find_dialect, find_model, find_tokenizer
from herd.runs.tool import Tool

DTYPES = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Every file that an export may hold: what `overwrite` may replace.
_FILES = ("config.json", "generation_config.json", "special_tokens.json", "special_tokens_map.json", "tokenizer.json")
_PATTERNS = (*_FILES, "tokenizer_config.json", "model*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class ExportConfig:
    """What `herd export` writes."""

    model: str  # a run's NAME/NODE, the folder of a stage, or of a model
    out: str  # folder to make
    tokenizer: str | None = None  # folder with tokenizer.json; null = that of the model's lineage
    dialect: str | None = None  # of the chat template: meta, meta_tag, hf, torchtune; null = as the model was trained, or meta
    dtype: str = "keep"  # of the weights: keep, fp32, bf16, fp16
    max_shard_bytes: int = 5_000_000_000  # larger weights are cut into several files
    overwrite: bool = False  # replace an earlier export
    root: str = "runs"  # folder of all runs, where names are looked up

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype: no '{self.dtype}'.{nearest(self.dtype, DTYPES)} Choices: {', '.join(DTYPES)}.")
        if self.dialect is not None:
            DIALECTS.get(self.dialect)
        if not self.out:
            raise UserError("out is empty: give the folder to make.")
        if self.max_shard_bytes < 1:
            raise UserError(f"max_shard_bytes must be 1 or more, not {self.max_shard_bytes}.")


def run(config: ExportConfig) -> None:
    """Write the folder, whole or not at all, and say what it holds."""
    folder = find_model(config.model, config.root)
    model = open_model(folder).cast(DTYPES[config.dtype])
    tokenizer = Tokenizer.load(config.tokenizer or find_tokenizer(folder))
    require_vocabulary(model, tokenizer)
    dialect = config.dialect or find_dialect(folder) or "meta"
    with _new_folder(Path(config.out), config.overwrite) as partial:
        files = export(model, tokenizer, partial, config.max_shard_bytes, dialect)
    size = sum(spec.bytes for spec in model.specs.values())
    architecture = CLASSIFIER if model.kind == REWARD else CAUSAL_LM
    print(
        f"{config.out}: {architecture}, {parameter_count(model.config, 'total'):,} parameters, "
        f"vocabulary {model.config.vocab_size:,}, {model.config.max_seq_len:,} positions; "
        f"{size:,} bytes of weights in {len(files)} file{'s' if len(files) > 1 else ''}; chat template: dialect {dialect}"
    )


def export(model: Checkpoint, tokenizer: Tokenizer, folder: Path, max_shard_bytes: int, dialect: str = "meta") -> list[str]:
    """Write weights, configuration, tokenizer and chat template into ``folder``; the names of the files with weights."""
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}
    files = write_hf_folder(folder, model, max_shard_bytes, ids)
    if model.kind != REWARD:
        write_json(folder / "generation_config.json", ids)
    template = chat_template(tokenizer.special_tokens, dialect)
    tokenizer.save(folder, {"chat_template": template, "model_max_length": model.config.max_seq_len})
    named = {"bos_token": BEGIN_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}
    write_json(folder / "special_tokens_map.json", named)  # transformers 4 alone reads it
    return files


def require_vocabulary(model: Checkpoint, tokenizer: Tokenizer) -> None:
    """UserError when the tokenizer has ids that the model's embedding has no row for."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size:,} entries, the model's vocabulary {model.config.vocab_size:,}: "
            "they do not belong together. Give the model's own with tokenizer=FOLDER."
        )


@contextmanager
def _new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill that takes the name ``out`` when all is written, and is removed otherwise."""
    _refuse(out, overwrite)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"out: '{out}' cannot be made ({error.strerror}): give another folder.") from error
    try:
        yield partial
        fsync_folder(partial)
        if out.exists():
            replaced = out.with_name(f".{out.name}.{os.getpid()}.replaced")
            os.replace(out, replaced)
            os.replace(partial, out)
            shutil.rmtree(replaced)
        else:
            os.replace(partial, out)
        fsync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _refuse(out: Path, overwrite: bool) -> None:
    """UserError when ``out`` is in the way: something that an export did not make is never replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"out: '{out}' is a file; give a folder.")
    others = [path.name for path in sorted(out.iterdir()) if path.is_dir() or not any(path.match(p) for p in _PATTERNS)]
    if others:
        raise UserError(f"out: '{out}' holds '{others[0]}', which no export makes: give another folder.")
    if not overwrite and any(out.iterdir()):
        raise UserError(f"out: '{out}' exists: give another folder, or overwrite=true.")


TOOL = Tool(
    name="export",
    config=ExportConfig,
    run=run,
    summary="a model as a folder that Hugging Face loads",
    verbatim=("model", "out", "tokenizer", "root"),
    help="""herd export model=runs/laptop/pretrain out=DIR dtype=bf16

Then, without this package:
  AutoModelForCausalLM.from_pretrained("OUT"), AutoTokenizer.from_pretrained("OUT")
A reward model becomes a LlamaForSequenceClassification with one label. The chat template is that of the dialect which the model
was trained in. It gives the ids of our own renderer for messages with role, content, call, tool_calls and end_of_message, and for
tools=[...]; it refuses what a template cannot follow: messages that spell a special token or begin with a blank line, and text
beside a call that no tag parts from it.""",
)
