"""safetensors files, tensor by tensor: neither reading nor writing holds more than one in memory.

The format: the length of the header (uint64), the header (JSON: name -> dtype, shape, byte range), then the bytes.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from herd.config.errors import UserError
from herd.runs.atomic import atomic_file

DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # the library's order
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_ALIGNMENT = 8  # bytes, of the header's end


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of its values."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class TensorFiles:
    """Tensors spread over safetensors files.

    Args:
        files: paths; no two may hold the same name.

    Attributes:
        specs: name -> dtype and shape, from the headers alone.

    Raises:
        UserError: a file is missing, truncated, no safetensors file, or holds another type than floats of 16 to 64 bits.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.specs: dict[str, TensorSpec] = {}
        self._file_of: dict[str, Path] = {}
        for path in files:
            for name, spec in _header(path).items():
                if name in self.specs:
                    raise UserError(f"{name} is in {self._file_of[name]} and in {path}: remove the file that is too many.")
                self.specs[name], self._file_of[name] = spec, path

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from its file: its pages are released with it."""
        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)


def _header(path: Path) -> dict[str, TensorSpec]:
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch or make it again.")
    specs = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise UserError(f"{path}: {name} is of type {part.get_dtype()}; weights must be {', '.join(_DTYPES)}.")
                specs[name] = TensorSpec(_DTYPES[part.get_dtype()], tuple(part.get_shape()))
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is truncated or no safetensors file ({reason}): write it again.") from error
    return specs


def write_tensors(path: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor]) -> None:
    """Write one safetensors file, whole or not at all, with the bytes that ``safetensors.torch.save`` would give.

    Args:
        specs: what the file holds.
        read: name -> its values, on any device, contiguous or not; asked for once each, one after another.
    """
    order = list(DTYPE_NAMES)
    names = sorted(specs, key=lambda name: (order.index(specs[name].dtype), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + specs[name].bytes
        header[name] = {
            "dtype": DTYPE_NAMES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            tensor = read(name).detach().cpu().contiguous()
            assert TensorSpec(tensor.dtype, tuple(tensor.shape)) == specs[name], f"{name} is not what was announced"
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
