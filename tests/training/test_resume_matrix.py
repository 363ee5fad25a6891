"""The resume matrix: a run killed here goes on there, and nothing shows it.

Killed {mid-epoch, between two micro-batches of a step, with documents cut by the checkpoint, at a stage's end, while a
checkpoint is written, between two weights of the annealing average} x resumed with {the same processes, other data workers,
another number of ranks}. All in float64, where another order of the sums over ranks is the only difference that is allowed,
and it stays far below 1e-6; checkpoints are written in the background, and the guard's window is part of them.
"""

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pretrain_standin import config, write_corpus
from safetensors.numpy import load_file
from test_ranks import on_two_ranks
from training_standin import Child, Killed, timeless

from herd.corpus.mixture import Mixture
from herd.corpus.shards import TokenShards
from herd.model.transformer import Transformer
from herd.runs.metrics import read_metrics
from herd.runs.stage import Inputs, StageRun
from herd.training import checkpoint, pretrain_stage
from herd.training.checkpoint import CheckpointStore, step_of
from herd.training.curriculum import Curriculum
from herd.training.pretrain import PretrainModule
from herd.training.saving import SaveCheckpoints

# 25 steps: 8 and 12 in the initial stage, 2 in the long one, 3 in the annealing; a checkpoint every 4 and at stage ends; a row
# of metrics every 3, so that checkpoints hold unfinished ones; two micro-batches a step at least.
SETTINGS = {
    "curriculum__tokens": 4096,
    "trainer__micro_batch_tokens": 64,
    "trainer__checkpoint_every_steps": 4,
    "trainer__log_every_steps": 3,
    "trainer__spikes": {"policy": "skip_step", "window": 6, "least": 3, "sigma": 0.5},
}


@dataclass(frozen=True)
class Kill:
    """Where a run ends, and the finished steps in the checkpoint that it must go on from."""

    step: int  # steps that it has finished by then
    where: str  # before the next step | between micro-batches of it | before saving | while writing
    goes_on_from: int


KILLS = {
    "mid-epoch": Kill(10, "before the next step", 8),
    "mid-accumulation": Kill(14, "between micro-batches", 12),
    "inside packed rows": Kill(17, "before the next step", 16),
    "stage boundary": Kill(20, "before saving", 16),
    "checkpoint write": Kill(12, "while writing", 8),
    "annealing average": Kill(24, "before the next step", 24),
}
HOW = {"same": {}, "workers": {"trainer__num_workers": 2}, "ranks": {"trainer__devices": 2, "trainer__strategy": "ddp"}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", autouse=True)
def float64():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_stage, "Transformer", lambda shape: Transformer(shape).double())
        yield


def run(inputs: Inputs, folder: Path, **changes) -> None:
    pretrain_stage.run(config(**SETTINGS | changes), inputs, StageRun(folder, seed=0))


@pytest.fixture(scope="module")
def straight(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run(inputs, folder)
    return folder


@pytest.fixture(scope="module")
def killed(inputs, tmp_path_factory):
    """place -> folder of a run killed there; made once, to be copied."""
    made: dict[str, Path] = {}

    def folder_of(place: str) -> Path:
        if place not in made:
            folder = made[place] = tmp_path_factory.mktemp("killed")
            if KILLS[place].where == "while writing":
                child = Child(lambda tick: run_until_writing(inputs, folder, KILLS[place].step))
                assert child.end() == -signal.SIGKILL
            else:
                run_until(inputs, folder, KILLS[place])
        return made[place]

    return folder_of


def run_until(inputs: Inputs, folder: Path, kill: Kill) -> None:
    passes = 0

    def before_step(self, step, plain=PretrainModule.before_step):
        nonlocal passes
        passes = 0
        if step == kill.step and kill.where == "before the next step":
            raise Killed
        plain(self, step)

    def micro_batch_loss(self, micro_batch, plain=PretrainModule.micro_batch_loss):
        nonlocal passes
        passes += 1
        if passes == 2 and self.global_step == kill.step and kill.where == "between micro-batches":
            raise Killed
        return plain(self, micro_batch)

    def save(self, trainer, plain=SaveCheckpoints._save):
        if trainer.global_step == kill.step and kill.where == "before saving":
            raise Killed
        plain(self, trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainModule, "before_step", before_step)
        patch.setattr(PretrainModule, "micro_batch_loss", micro_batch_loss)
        patch.setattr(SaveCheckpoints, "_save", save)
        with pytest.raises(Killed):
            run(inputs, folder)


def run_until_writing(inputs: Inputs, folder: Path, step: int) -> None:
    """SIGKILL of this process when half of the checkpoint's bytes are in the file."""

    def write(self, data, plain=checkpoint._Hashing.write):
        plain(self, data)
        if f"{step:08d}" in self.file.name and self.file.tell() > 20_000:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return len(data)

    checkpoint._Hashing.write = write  # in the child alone
    run(inputs, folder)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("place", KILLS)
def test_killed_and_resumed_is_as_if_never_killed(straight, killed, inputs, tmp_path, place, how):
    folder, changes = tmp_path / "run", HOW[how]
    shutil.copytree(killed(place), folder)
    store = CheckpointStore(folder / ".scratch/checkpoints")
    assert step_of(store.files()[0]) == KILLS[place].goes_on_from
    if place == "checkpoint write":
        (half,) = store.folder.glob(".*")
        assert half.stat().st_size > 20_000
    if "trainer__devices" in changes:
        assert on_two_ranks(lambda rank: run(inputs, folder, **changes)) == [0, 0]
        assert_close(folder, straight, 1e-6)
    else:
        run(inputs, folder, **changes)
        assert timeless(folder) == timeless(straight)
        assert artefacts(folder) == artefacts(straight)
    assert not list(store.folder.glob(".*"))


def test_killed_on_two_ranks_and_resumed_on_one(straight, inputs, tmp_path):
    def until(rank: int) -> None:
        def before_step(self, step, plain=PretrainModule.before_step):
            if step == 10:
                os._exit(9)
            plain(self, step)

        PretrainModule.before_step = before_step  # in the child alone
        run(inputs, tmp_path, **HOW["ranks"], trainer__checkpoint_async=False)

    assert on_two_ranks(until) == [9, 9]
    assert step_of(CheckpointStore(tmp_path / ".scratch/checkpoints").files()[0]) == 8
    run(inputs, tmp_path)
    assert_close(tmp_path, straight, 1e-6)


def test_the_places_are_what_they_are_called(straight, inputs):
    """Documents are cut by the checkpoint, no epoch is over, the guard and the average are at work."""
    settled = config(**SETTINGS)
    curriculum = Curriculum(settled.curriculum, settled.mix.weights, 2e-2)
    mixture = Mixture(TokenShards(inputs["tokens"] / "tokens"), "train", curriculum.mixture_phases(), 0)
    assert curriculum.stage_ends() == {"initial": 20, "long": 22, "annealing": 25}
    assert sorted(curriculum.averaged_after()) == [23, 24, 25]
    assert all(passes < 1 for passes in mixture.epochs().values())

    def documents(steps) -> set[str]:
        rows = (mixture.documents_of(*curriculum.rows(step)) for step in steps)
        return {name for step in rows for row in step for name in row}

    at = KILLS["inside packed rows"].goes_on_from
    assert len(documents(range(at)) & documents(range(at, 25))) > 10
    assert read_metrics(straight / "metrics.jsonl")[-1]["spike_steps"] > 0


def artefacts(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves, but its checkpoints and the metrics."""
    found = [p for p in folder.rglob("*") if p.is_file() and ".scratch" not in p.parts and p.name != "metrics.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def assert_close(folder: Path, straight: Path, tolerance: float) -> None:
    """Losses and weights equal within a relative tolerance; everything else equal."""
    for row, expected in zip(timeless(folder), timeless(straight), strict=True):
        assert row.keys() == expected.keys()
        for key, value in expected.items():
            assert row[key] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value), key
    for model in ("model", "stages/initial", "stages/annealing"):
        one, two = (load_file(run / model / "model.safetensors") for run in (straight, folder))
        assert one.keys() == two.keys()
        for name, weight in one.items():
            assert weight.dtype == np.float64
            difference = np.linalg.norm(weight - two[name]) / np.linalg.norm(weight)
            assert difference < tolerance, (model, name, difference)
