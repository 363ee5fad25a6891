"""Meta's release of a model: ``params.json`` and ``consolidated.00.pth``, one file a rank of model parallelism.

The files are pickles of PyTorch. They are read with ``weights_only=True``, which builds tensors and nothing else, and mapped
into memory, so that only the tensors in use are held.
"""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.model.convert import config_from_meta, tensor_from_meta
from herd.model.hf_folder import read_json
from herd.model.io import TRANSFORMER, Checkpoint, check_shapes, expected_shapes
from herd.model.tensor_files import DTYPE_NAMES, TensorSpec

PARAMS_FILE = "params.json"
_UNUSED = ("rope.freqs",)  # a buffer that follows from the configuration


def open_meta_folder(folder: Path, max_seq_len: int = 0, rope_factor: float = 8.0) -> Checkpoint:
    """The model in a folder of Meta's; no weight is read yet.

    Args:
        max_seq_len, rope_factor: see :func:`herd.model.convert.config_from_meta`.

    Raises:
        UserError: a file is missing, damaged or holds anything but tensors; weights that do not fit ``params.json``.
    """
    params = read_json(folder / PARAMS_FILE)
    ranks = [_load(path) for path in _rank_files(folder)]
    names = [name for name in ranks[0] if name not in _UNUSED]
    for i, rank in enumerate(ranks):
        if {*rank} - {*_UNUSED} != {*names}:
            raise UserError(f"{folder}: rank {i} of {len(ranks)} holds other tensors than rank 0: fetch the files again.")
    first = "layers.0.feed_forward.w1.weight"
    if first not in names:
        raise UserError(f"{folder} has no {first}: it holds no Llama 3 text model.")

    def read(name: str) -> Tensor:
        return tensor_from_meta([rank[name] for rank in ranks], name)

    # On the meta device a concatenation has its shape and no values.
    shapes = {name: tensor_from_meta([rank[name].to("meta") for rank in ranks], name).shape for name in names}
    specs = {name: TensorSpec(ranks[0][name].dtype, tuple(shape)) for name, shape in shapes.items()}
    try:
        config = config_from_meta(params, "output.weight" not in names, specs[first].shape[0], max_seq_len, rope_factor)
    except UserError as error:
        raise UserError(f"{folder / PARAMS_FILE}: {error}") from error
    count = f" {len(ranks)} files were found: is one missing?"
    check_shapes(expected_shapes(TRANSFORMER, config), specs, folder, count)
    return Checkpoint(TRANSFORMER, config, specs, read)


def _rank_files(folder: Path) -> list[Path]:
    files = {int(m[1]): path for path in folder.iterdir() if (m := re.fullmatch(r"consolidated\.(\d+)\.pth", path.name))}
    missing = [i for i in range(max(files, default=0) + 1) if i not in files]
    if missing:
        raise UserError(f"{folder} has no consolidated.{missing[0]:02}.pth: fetch it.")
    return [files[i] for i in sorted(files)]


def _load(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is truncated or no zip file, as PyTorch writes since 1.6: it was not loaded. Fetch it again.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds something else than tensors, or is damaged: it was not loaded. Fetch it again.") from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} cannot be read ({reason}): fetch it again.") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} holds something else than named tensors: give the files of Meta's release.")
    for name, tensor in state.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise UserError(f"{path}: {name} is of type {tensor.dtype}; quantised weights do not convert.")
    return state
