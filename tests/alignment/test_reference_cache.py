"""The reference's log-probabilities: shared by ranks, kept when killed, the same whoever makes them."""

from collections.abc import Sequence

import pytest
import torch
from posttraining import WINDOW, preferences, tiny_model, tokenizer
from training_standin import Killed

from herd.alignment import reference_cache
from herd.alignment.reference_cache import cached_reference, own_device
from herd.config.errors import UserError
from herd.dialog.rows import Counted
from herd.model.io import save_model
from herd.runs.stage import StageRun
from herd.training.dpo import DPOObjective, DPORows, DPOSteps, dpo_pairs
from herd.training.trainer_config import TrainerConfig

TWO = TrainerConfig(devices=2, strategy="ddp")


@pytest.fixture
def source() -> DPOSteps:
    data = dpo_pairs(preferences(20), tokenizer(), WINDOW, DPOObjective(), Counted())
    return DPOSteps(data, DPOObjective(), 4, 160, 1.0, 0)


class Reader:
    """What a rank reads of the reference, counted; it is killed before its n-th piece."""

    def __init__(self, root, source: DPOSteps, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.run, self.patch = source, StageRun(root / "run", seed=0), monkeypatch
        self.folder = root / "model"
        save_model(tiny_model(), self.folder)
        self.groups = 0
        monkeypatch.setattr(reference_cache, "_LEAST", 2)

    def read(self, rank: int, trainer: TrainerConfig = TWO, dies_at: int = 10**9) -> list[torch.Tensor]:
        calls, plain = [], reference_logprobs

        def counted(model, groups: Sequence[DPORows], *rest):
            calls.append(len(groups))
            if len(calls) == dies_at:
                raise Killed
            self.groups += len(groups)
            return plain(model, groups, *rest)

        self.patch.setattr(reference_cache, "reference_logprobs", counted)
        self.patch.setenv("RANK", str(rank))
        self.patch.setenv("LOCAL_RANK", str(rank))
        return cached_reference(tiny_model(), self.source, trainer, self.run, self.folder)


reference_logprobs = reference_cache.reference_logprobs


def test_ranks_share_the_reference_and_go_on_where_one_was_killed(source, tmp_path, monkeypatch):
    alone = reference_logprobs(tiny_model(), source.groups)
    reader = Reader(tmp_path, source, monkeypatch)
    assert len(source.groups) >= 8
    with pytest.raises(Killed):
        reader.read(0, dies_at=2)
    assert reader.groups == 2
    both = reader.read(1)  # finds the piece of the killed one, and makes the rest of its share too
    assert reader.groups == len(source.groups)
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    later = reader.read(0)
    one = reader.read(0, TrainerConfig())  # on as many processes as it likes
    assert reader.groups == len(source.groups)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(alone, later, one, strict=True))
    assert not list(reader.run.scratch.rglob("*.tmp"))


def test_each_rank_begins_with_its_own_share(source, tmp_path, monkeypatch):
    reader, found = Reader(tmp_path, source, monkeypatch), {}
    for rank in (1, 0):
        with pytest.raises(Killed):
            reader.read(rank, dies_at=2)
        (kept,) = reader.run.scratch.glob("reference-*")
        found[rank] = sorted(path.name for path in kept.iterdir())
    assert found == {1: ["00000002.pt"], 0: ["00000000.pt", "00000002.pt"]}


def test_devices_without_processes_are_refused_before_the_reference_is_computed(source, tmp_path, monkeypatch):
    reader = Reader(tmp_path, source, monkeypatch)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="2 devices need 2 processes"):
        cached_reference(tiny_model(), source, TWO, reader.run, reader.folder)


def test_a_ranks_device_is_its_own(monkeypatch):
    monkeypatch.setattr(reference_cache, "find_device", torch.device)
    assert own_device("gpu", 3) == torch.device("cuda", 3)
    assert own_device("cpu", 3) == torch.device("cpu")
