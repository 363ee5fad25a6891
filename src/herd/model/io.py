"""A model on disk: ``config.json`` (what it is) and ``model.safetensors`` (its weights)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from herd.config.errors import UserError
from herd.config.loader import from_dict, to_plain
from herd.model.config import ModelConfig
from herd.model.heads import RewardModel
from herd.model.tensor_files import TensorFiles, TensorSpec, write_tensors
from herd.model.transformer import Transformer
from herd.runs.atomic import write_json

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TRANSFORMER, REWARD = "transformer", "reward"  # kinds of models
_FORMAT = "herd.model/1"


@dataclass(frozen=True)
class Checkpoint:
    """A model somewhere on disk, under herd's names, read one tensor at a time."""

    kind: str  # TRANSFORMER or REWARD
    config: ModelConfig  # of the Transformer (of a reward model, of its backbone)
    specs: Mapping[str, TensorSpec]  # every tensor
    read: Callable[[str], Tensor]  # name -> its values

    def cast(self, dtype: torch.dtype | None) -> "Checkpoint":
        """The same model with weights of ``dtype``; None leaves them as they are."""
        if dtype is None:
            return self
        specs = {name: TensorSpec(dtype, spec.shape) for name, spec in self.specs.items()}
        return Checkpoint(self.kind, self.config, specs, lambda name: self.read(name).to(dtype))


def save_model(module: nn.Module, folder: Path) -> None:
    """Write a Transformer or a RewardModel to ``folder``, each file whole or not at all; tied weights once.

    Weights keep their dtype and are copied to the CPU. The same weights always give the same bytes.
    """
    assert isinstance(module, Transformer | RewardModel), f"cannot save a {type(module).__name__}"
    backbone = module.backbone if isinstance(module, RewardModel) else module
    state = module.state_dict()
    kind = REWARD if isinstance(module, RewardModel) else TRANSFORMER
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    write_model(Path(folder), Checkpoint(kind, backbone.config, specs, state.__getitem__))


def write_model(folder: Path, model: Checkpoint) -> None:
    """As :func:`save_model`, with one tensor in memory at a time."""
    write_tensors(folder / WEIGHTS_FILE, model.specs, model.read)
    write_json(folder / CONFIG_FILE, {"format": _FORMAT, "kind": model.kind, "model": to_plain(model.config)})


def expected_shapes(kind: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of such a model; nothing is allocated."""
    with torch.device("meta"):
        model: nn.Module = Transformer(config)
        if kind == REWARD:
            assert isinstance(model, Transformer)
            model = RewardModel(model)
    return _shapes(model.state_dict())


def open_model(folder: Path) -> Checkpoint:
    """What is saved in ``folder``, without reading the weights.

    Raises:
        UserError: as :func:`load_model`.
    """
    folder = Path(folder)
    kind, config = _read_config(folder)
    tensors = _open_weights(folder)
    check_shapes(expected_shapes(kind, config), tensors.specs, folder)
    return Checkpoint(kind, config, tensors.specs, tensors.read)


def check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorSpec], folder: Path, hint: str = "") -> None:
    """UserError naming the first tensor that is missing, unknown or of another shape."""
    shapes = {name: spec.shape for name, spec in found.items()}
    if shapes != expected:
        raise UserError(f"The weights in {folder} do not fit its configuration: {_first_mismatch(expected, shapes)}.{hint}")


def load_model(folder: Path) -> Transformer:
    """The Transformer saved in ``folder``; of a reward model, its backbone.

    Raises:
        UserError: a file is missing, truncated, of another format, or does not fit the configuration.
    """
    kind, config = _read_config(Path(folder))
    state = read_weights(Path(folder))
    if kind == REWARD:
        prefix = "backbone."
        state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    with torch.device("meta"):
        model = Transformer(config)
    return _fill(model, state, Path(folder), model)


def load_language_model(folder: Path, given_as: str) -> Transformer:
    """As :func:`load_model`, of a model that writes; UserError, naming the input ``given_as``, for a reward model."""
    if open_model(folder).kind == REWARD:
        raise UserError(f"{given_as}: {folder} is a reward model: it scores text and writes none.")
    return load_model(folder)


def load_reward_model(folder: Path) -> RewardModel:
    """The RewardModel saved in ``folder``.

    Raises:
        UserError: as :func:`load_model`, or ``folder`` holds a model without a reward head.
    """
    kind, config = _read_config(Path(folder))
    if kind != REWARD:
        raise UserError(f"{folder} holds a language model without a reward head: give a folder that `herd reward` wrote.")
    with torch.device("meta"):
        model = RewardModel(Transformer(config))
    return _fill(model, read_weights(Path(folder)), Path(folder), model.backbone)


def average_models(folders: Sequence[Path], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted mean of the weights of several saved models, summed in float64 and returned in the dtype of the first.

    Args:
        folders: where they are.
        weights: of each model, at least 0 and of any sum above 0; equal ones when None.

    Raises:
        UserError: no folder, or two that differ in names, shapes or shape of model.
    """
    if not folders:
        raise UserError("Nothing to average: no model folders were given.")
    weights = [1.0] * len(folders) if weights is None else weights
    assert len(weights) == len(folders) and min(weights) >= 0 and sum(weights) > 0, weights
    first = Path(folders[0])
    kind, config = _read_config(first)
    state = read_weights(first)
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in state.items()}
    for folder, weight in zip(map(Path, folders), weights, strict=True):
        other_kind, other_config = _read_config(folder)
        other = read_weights(folder)
        if other_kind != kind:
            raise UserError(f"Cannot average {first} and {folder}: the one is a {kind} model, the other a {other_kind} model.")
        if other_config != config or _shapes(other) != _shapes(state):
            raise UserError(f"Cannot average {first} and {folder}: {_difference(config, other_config, state, other)}.")
        for name, tensor in other.items():
            total[name].add_(tensor.double(), alpha=weight)
    return {name: (tensor / sum(weights)).to(state[name].dtype) for name, tensor in total.items()}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``folder/model.safetensors``.

    Raises:
        UserError: the file is missing, truncated or no safetensors file.
    """
    tensors = _open_weights(folder)
    return {name: tensors.read(name) for name in tensors.specs}


def _open_weights(folder: Path) -> TensorFiles:
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"No {WEIGHTS_FILE} in {folder}: give a folder that a training command wrote.")
    return TensorFiles([folder / WEIGHTS_FILE])


def _read_config(folder: Path) -> tuple[str, ModelConfig]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"No {CONFIG_FILE} in {folder}: give a folder that a training command wrote.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON ({_one_line(error)}): write it again.") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT or not isinstance(values.get("model"), dict):
        raise UserError(f"{path} is no {_FORMAT} configuration: a Hugging Face or Meta checkpoint goes through `herd import`.")
    kind = values.get("kind")
    if kind not in (TRANSFORMER, REWARD):
        raise UserError(f"{path}: kind is {kind!r}, expected 'transformer' or 'reward'.")
    try:
        return kind, from_dict(ModelConfig, values["model"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _fill(model: Any, state: Mapping[str, Tensor], folder: Path, backbone: Transformer) -> Any:
    """Give a model made on the meta device its weights, which become its parameters without a copy."""
    found = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    check_shapes(_shapes(model.state_dict()), found, folder)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True)
    config = backbone.config
    backbone.set_rope(config.rope_theta, config.rope_scaling, config.max_seq_len)  # the table was on meta too
    return model


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _difference(a: ModelConfig, b: ModelConfig, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str:
    if _shapes(first) != _shapes(second):
        return _first_mismatch(_shapes(first), _shapes(second))
    fields = [name for name, value in to_plain(a).items() if to_plain(b)[name] != value]
    return f"their configurations differ in {', '.join(fields)}" if fields else "one has a reward head"


def _first_mismatch(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} has no place"
        if expected[name] != found[name]:
            return f"{name} is {found[name]}, expected {expected[name]}"
    raise AssertionError("no mismatch")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
