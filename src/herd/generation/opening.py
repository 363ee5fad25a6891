"""A model, its tokenizer and what it was made for, from what a person calls it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.model.config import ModelConfig
from herd.model.device import find_device
from herd.model.io import REWARD, load_model, open_model
from herd.model.transformer import Transformer
from herd.runs.locate import find_dialect, find_model, find_tokenizer
from herd.runs.manifest import MANIFEST, read_manifest

_BASE = ("pretrain", "scaling-sweep")  # stages whose models have seen no dialogs


@dataclass(frozen=True)
class Found:
    """Where a model that writes lies, and what belongs to it."""

    folder: Path  # with config.json
    config: ModelConfig
    tokenizer: Tokenizer
    base: str  # the stage that made it, when that trains on no dialogs; otherwise empty
    dialect: str  # how messages become tokens


@dataclass(frozen=True)
class Opened:
    """A model that writes."""

    model: Transformer  # on its device, without gradients
    tokenizer: Tokenizer
    base: str  # the stage that made it, when that trains on no dialogs; otherwise empty
    dialect: str  # how messages become tokens


def find_generator(given: str, root: str, tokenizer: str | None, dialect: str | None = None) -> Found:
    """What a person calls ``given``, without reading weights.

    Args:
        dialect: of messages; None: that which the model was trained in, `meta` where it is not known.

    Raises:
        UserError: no such model or tokenizer, one that does not belong to the other, or a reward model.
    """
    folder = find_model(given, root)
    model = open_model(folder)
    if model.kind == REWARD:
        raise UserError(f"{folder} is a reward model: it scores text and writes none.")
    loaded = Tokenizer.load(tokenizer or find_tokenizer(folder))
    if loaded.vocab_size > model.config.vocab_size:
        raise UserError(f"The tokenizer has {loaded.vocab_size:,} entries, the model {model.config.vocab_size:,}: give its own.")
    stage = _stage_of(folder)
    spoken = dialect or find_dialect(folder) or "meta"
    return Found(folder, model.config, loaded, stage if stage in _BASE else "", spoken)


def open_generator(given: str, root: str, tokenizer: str | None, device: str, threads: int, dialect: str | None = None) -> Opened:
    """Load a model by name or folder; as :func:`find_generator`, UserError also for no such device."""
    return load_generator(find_generator(given, root, tokenizer, dialect), device, threads)


def load_generator(found: Found, device: str, threads: int) -> Opened:
    """Load what was found; UserError for no such device."""
    target = find_device(device)
    model = load_model(found.folder)
    if threads:
        torch.set_num_threads(threads)
    return Opened(model.to(target).requires_grad_(False), found.tokenizer, found.base, found.dialect)


def _stage_of(model: Path) -> str:
    """The stage that made a model, or nothing where that is not known."""
    folder = model.resolve().parent
    return str(read_manifest(folder)["stage"]) if (folder / MANIFEST).is_file() else ""
