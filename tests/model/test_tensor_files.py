"""safetensors by hand: the library's own bytes, and one tensor in memory at a time."""

import pytest
import torch
from safetensors.torch import load_file, save

from herd.config.errors import UserError
from herd.model.tensor_files import TensorFiles, TensorSpec, write_tensors


def specs_of(state):
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


STATE = {
    "b": torch.arange(6.0).view(2, 3),
    "a": torch.arange(4.0).to(torch.bfloat16),
    "größe": torch.ones(3),
    "h": torch.full((2, 2), 3, dtype=torch.float16),
    "d": torch.ones(2, 2, dtype=torch.float64),
    "empty": torch.zeros(0, 5),
}


def test_the_bytes_are_the_librarys(tmp_path):
    write_tensors(tmp_path / "x.safetensors", specs_of(STATE), STATE.__getitem__)
    assert (tmp_path / "x.safetensors").read_bytes() == save(STATE, metadata={"format": "pt"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in STATE.items())


def test_tensors_need_not_be_contiguous(tmp_path):
    turned = {"t": STATE["b"].T}
    write_tensors(tmp_path / "x", specs_of(turned), turned.__getitem__)
    assert torch.equal(load_file(tmp_path / "x")["t"], STATE["b"].T)


def test_files_are_read_name_by_name(tmp_path):
    for name in ("a", "b"):
        write_tensors(tmp_path / name, specs_of({name: STATE[name]}), STATE.__getitem__)
    files = TensorFiles([tmp_path / "a", tmp_path / "b"])
    assert files.specs == specs_of({name: STATE[name] for name in ("a", "b")})
    assert torch.equal(files.read("b"), STATE["b"])
    assert files.specs["a"].bytes == 8
    with pytest.raises(UserError, match="remove the file that is too many"):
        TensorFiles([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(UserError, match="is missing"):
        TensorFiles([tmp_path / "c"])


def test_a_failure_half_way_leaves_nothing(tmp_path):
    def fails(name):
        if name == "h":
            raise OSError("gone")
        return STATE[name]

    with pytest.raises(OSError, match="gone"):
        write_tensors(tmp_path / "x", specs_of(STATE), fails)
    assert not list(tmp_path.iterdir())
