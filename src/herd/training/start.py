"""Going on from another run's checkpoint: the weights at the end of one of its stages, and what else is carried over.

Carried over: the weights, with their RoPE; AdamW's moments and step count, where that run kept them (``save_optimizer``), else
the moments begin at zero; the learning rate (see ``start_lr``); and, on the same token shards, the place in every source, so that
the data go on where they stopped. Steps and tokens of this run are counted from zero; ``start`` in its metrics holds the earlier
ones. Of a model that `herd import` has brought in, weights, shape and tokenizer are carried over.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from herd.config.errors import UserError, nearest
from herd.corpus.mixture import Phase
from herd.model.config import ModelConfig
from herd.model.io import REWARD, load_model, open_model
from herd.model.transformer import Transformer
from herd.runs.atomic import sha256_file, write_bytes, write_json
from herd.runs.stage import Artifact
from herd.training.optimizer import misfit
from herd.training.whole import whole_tensor

TRAINING, MOMENTS = "training.json", "optimizer.safetensors"
_MOVED = ("max_seq_len", "rope_theta", "rope_scaling")  # by the curriculum: what a checkpoint has of them is taken over


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from."""

    folder: Path  # <pretrain>/stages/<stage>
    stage: str
    steps: int  # optimizer steps behind it, of all runs that led to it
    tokens: int  # tokens behind it
    peak_lr: float  # of the run that made it
    lr_share: float  # share of that peak at which its schedule stood
    data: str  # address of the token shards it was trained on
    tokenizer: str  # see :func:`tokenizer_of`
    phases: tuple[Phase, ...]  # of the mixture behind it
    imported: bool = False  # by `herd import`: weights and tokenizer alone

    @property
    def has_moments(self) -> bool:
        """Whether the optimizer's moments were kept."""
        return (self.folder / MOMENTS).is_file()

    @property
    def shape(self) -> ModelConfig:
        """Of the model, without reading its weights."""
        return open_model(self.folder).config

    def model(self) -> Transformer:
        """The weights."""
        return load_model(self.folder).float()

    def moments(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The optimizer's state, as :func:`set_moments` takes it; None where it was not kept.

        Raises:
            UserError: the file is damaged, or its state is not that of ``model``'s parameters.
        """
        if not self.has_moments:
            return None
        try:
            moments = load((self.folder / MOMENTS).read_bytes())
        except SafetensorError as error:
            raise UserError(f"'{self.folder / MOMENTS}' is damaged ({error}): run that pretrain again.") from None
        states, parameters = by_parameter(moments), dict(model.named_parameters())
        for name in sorted(states.keys() | parameters.keys()):
            problem = misfit(states.get(name, {}), parameters[name]) if name in parameters else "is not in the model"
            if problem:
                raise UserError(
                    f"inputs.start: in '{self.folder / MOMENTS}' {name} {problem}, so it is not of the weights beside it: run "
                    "that pretrain again, or remove the file to begin with moments of zero."
                )
        return moments

    def check(self, model: ModelConfig, tokenizer: str) -> None:
        """Refuse a configuration that asks for another shape, or tokens of another tokenizer (UserError)."""
        if tokenizer != self.tokenizer:
            raise UserError(f"inputs.start: '{self.folder}' was trained with another tokenizer than that of inputs.tokens.")
        held = self.shape
        for field in fields(ModelConfig):
            ours, theirs = getattr(model, field.name), getattr(held, field.name)
            if field.name not in _MOVED and ours != theirs:
                raise UserError(
                    f"inputs.start: '{self.folder}' holds a model with {field.name} {theirs}, model.{field.name} is {ours}: "
                    "choose the model that made it."
                )

    def describe(self) -> dict[str, Any]:
        """What was carried over, for the manifest."""
        return {"stage": self.stage, "steps": self.steps, "tokens": self.tokens, "moments": self.has_moments}


def open_start(artifact: Artifact, stage: str | None) -> Start:
    """The checkpoint at the end of a stage of a finished `herd pretrain`; None = its last one.

    Raises:
        UserError: another command's result, no such stage, or a result of an older version.
    """
    made_by = artifact.manifest["stage"]
    if made_by == "import":
        return _open_import(artifact, stage)
    if made_by != "pretrain":
        raise UserError(
            f"inputs.start: '{artifact.path}' was made by `herd {made_by}`; give a finished `herd pretrain` or `import`."
        )
    phases = json.loads((artifact / "curriculum.json").read_text(encoding="utf-8"))["phases"]
    stages = list(dict.fromkeys(phase["stage"] for phase in phases))
    chosen = stage or stages[-1]
    if chosen not in stages:
        raise UserError(
            f"start_stage: '{artifact.path}' has no stage '{chosen}'.{nearest(chosen, stages)} It has {', '.join(stages)}."
        )
    folder = artifact / "stages" / chosen
    if not (folder / TRAINING).is_file():
        raise UserError(f"inputs.start: '{folder}' has no {TRAINING}, so an older version made it: run that pretrain again.")
    told = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    told["phases"] = tuple(Phase(**phase) for phase in told["phases"])
    return Start(folder=folder, stage=chosen, **told)


def _open_import(artifact: Artifact, stage: str | None) -> Start:
    """A foreign checkpoint: nothing is known of its training, so ``start_lr`` must be own."""
    folder = artifact / "model"
    if stage is not None:
        raise UserError(f"start_stage: '{artifact.path}' was imported and has no stages: leave it null.")
    if open_model(folder).kind == REWARD:
        raise UserError(f"inputs.start: '{artifact.path}' is a reward model: give a language model to go on from.")
    if not (artifact.path / "tokenizer").is_dir():
        raise UserError(f"inputs.start: '{artifact.path}' was imported without its tokenizer: import it with tokenizer=true.")
    return Start(folder, "import", 0, 0, 0.0, 0.0, "", tokenizer_of(artifact), (), imported=True)


def save_training(folder: Path, told: dict[str, Any], moments: dict[str, Tensor] | None) -> None:
    """Write what :func:`open_start` reads beside a stage's weights."""
    write_json(folder / TRAINING, told)
    if moments is not None:
        write_bytes(folder / MOMENTS, save({name: value.contiguous() for name, value in moments.items()}))


def tokenizer_of(tokens: Artifact) -> str:
    """What tells a corpus's tokenizer from others: the hash of its file, or of the bytes behind each id where it has none."""
    for name in ("tokenizer/tokenizer.json", "tokens/token_bytes.npy"):
        if (tokens.path / name).is_file():
            return sha256_file(tokens.path / name)
    raise UserError(f"'{tokens.path}' holds no tokenizer and no token shards: give inputs.tokens=FOLDER of `herd tokenize`.")


def whole_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``<parameter>/<entry>`` -> the optimizer's state on the CPU, gathered from all ranks where it is sharded."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{entry}": whole_tensor(value).detach().cpu()
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
        if isinstance(value, Tensor)
    }


def by_parameter(moments: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Parameter -> entry -> tensor, of what :func:`whole_moments` took."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, _, entry = key.rpartition("/")
        states.setdefault(name, {})[entry] = value
    return states


def set_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """Give a fresh optimizer the state that :func:`whole_moments` took, to each rank its shard; its own rates stay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state, states = optimizer.state_dict(), by_parameter(moments)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        own = states[names[id(parameter)]]
        if isinstance(parameter, DTensor):
            own = {
                entry: distribute_tensor(value, parameter.device_mesh, parameter.placements)
                if value.shape == parameter.shape
                else value
                for entry, value in own.items()
            }
        state["state"][index] = own
    optimizer.load_state_dict(state)
