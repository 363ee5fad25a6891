"""What a step costs: operations against a closed form and a counter, peaks of devices, time, energy, garbage; no waiting."""

import gc
import sys
import types

import pytest
import torch
from pretrain_standin import config, write_corpus
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from training_standin import Regression, train

from herd.corpus.packing import PackedRows
from herd.model.config import ModelConfig
from herd.model.counts import parameter_count
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy
from herd.runs.metrics import read_metrics
from herd.runs.stage import StageRun
from herd.training import meters, pretrain_stage
from herd.training.devices import known_peak, peak_here
from herd.training.meters import Energy, StepClock, transformer_flops
from herd.training.module import HerdModule
from herd.training.rows import FIELDS, field_of
from herd.training.steps import StepBatch

SHAPE = ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=80, vocab_size=50, max_seq_len=64)
LENGTHS = ((10, 20, 34), (64,), (1, 1, 62))


def test_operations_are_the_closed_form():
    tokens, squares = 3 * 64, sum(n * n for row in LENGTHS for n in row)
    flops = transformer_flops(SHAPE, StepBatch(0, [], 1.0, tokens, squares, tokens * 64))
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 80
    matrices = 6 * tokens * (3 * layer + 50 * 32)
    scores_and_values = 2 * 2 * 3 * 32 * 3  # two products, two operations, three layers, width, forward and twice backward
    assert flops.full == pytest.approx(matrices + scores_and_values * 3 * 64 * 64, rel=1e-12)
    assert flops.causal == pytest.approx(matrices + scores_and_values * 3 * 64 * 64 / 2, rel=1e-12)
    assert flops.document == pytest.approx(matrices + scores_and_values * squares / 2, rel=1e-12)
    whole = transformer_flops(SHAPE, StepBatch(0, [], 1.0, 64, 64 * 64, 64 * 64))
    assert whole.document == whole.causal


def test_operations_are_what_torch_counts():
    """The counter takes each document's whole square, since SDPA's math is asked for it; the convention takes half of it."""
    model = Transformer(SHAPE)
    model.attention = "documents"
    tokens = torch.randint(0, 50, (3, 64), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[i for n in row for i in range(n)] for row in LENGTHS])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden = model(tokens, positions, Documents(LENGTHS))
        linear_cross_entropy(hidden, model.output_weight, tokens).backward()
    flops = transformer_flops(SHAPE, StepBatch(0, [], 1.0, 192, sum(n * n for row in LENGTHS for n in row), 192 * 64))
    matrices = 6 * 192 * parameter_count(SHAPE, "6N")
    assert counter.get_total_flops() == pytest.approx(2 * (flops.document - matrices) + matrices, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H100 NVL", "fp8", 1670.5e12),
        ("NVIDIA H200", "tf32", 494.7e12),
        ("NVIDIA GH200 480GB", "bf16", 989.4e12),
        ("NVIDIA B200", "bf16", 2250e12),
        ("NVIDIA L40S", "fp32", 91.6e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA A10", "bf16", None),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_peak_of_known_devices_and_of_no_other(name, dtype, peak):
    assert known_peak(name, dtype) == peak


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Metrics of a pre-training whose device is said to do 0.1 TFLOP/s."""
    folder = tmp_path_factory.mktemp("metered")
    inputs = write_corpus(folder / "corpus")
    settings = config(curriculum__tokens=2048, trainer__peak_tflops=0.1)
    pretrain_stage.run(settings, inputs, StageRun(folder / "run", seed=0))
    return read_metrics(folder / "run/metrics.jsonl")


def test_every_column_is_in_the_schema(rows):
    columns = {name for row in rows for name in row}
    assert {name for name in columns if field_of(name) is None} == set()
    missing = {name for name in FIELDS if not name.startswith("device_")} - columns - {"spike_steps"}
    assert {name for name in missing if "*" not in name} == {"z_loss", "nll_loss", "accuracy", "margin", "mean_reward"}


def test_utilisation_is_operations_over_time_and_peak(rows):
    for row in rows:
        assert 0 < row["mfu_document"] <= row["mfu_causal"] < row["mfu_full"]
        assert row["mfu_document"] == pytest.approx(row["flops_per_second"] / 0.1e12, rel=1e-3)
    assert rows[0]["mfu_full"] > 1.01 * rows[0]["mfu_document"]


def test_parts_of_a_step_are_no_more_than_the_step(rows):
    parts = ("data_seconds", "forward_backward_seconds", "optimizer_seconds", "checkpoint_seconds")
    for row in rows:
        assert all(row[part] >= 0 for part in parts)
        assert sum(row[part] for part in parts) <= row["step_seconds"] * 1.01
        assert row["data_wait"] == pytest.approx(row["data_seconds"] / row["step_seconds"], abs=2e-3)
        assert row["memory_bytes"] > 1e7


def test_an_unknown_device_has_no_utilisation(tmp_path):
    train(tmp_path)
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert not any(name.startswith(("mfu", "device", "flops")) for name in row)  # of this model nothing is counted either


def test_clock_counts_each_second_once(monkeypatch):
    now = iter([10.0, 11.0, 13.0, 13.5, 14.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(now))
    clock, cpu = StepClock(), torch.device("cpu")
    for name in ("data", "forward_backward", "optimizer", "data"):
        clock.lap(name, cpu)
    assert clock.read() == {"data": 1.5, "forward_backward": 2.0, "optimizer": 0.5}
    assert clock.read() == {}


class FakeNvml(types.ModuleType):
    """A driver that counts 250 J between readings."""

    class NVMLError(Exception):
        pass

    def __init__(self, supported: bool = True) -> None:
        super().__init__("pynvml")
        self.millijoules, self.supported, self.asked = 0, supported, None

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked = uuid
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.supported:
            raise self.NVMLError
        self.millijoules += 250_000
        return self.millijoules


@pytest.mark.parametrize(("supported", "expected"), [(True, {"device_energy_joules": 250.0}), (False, {})])
def test_energy_is_what_the_driver_counts(monkeypatch, supported, expected):
    nvml = FakeNvml(supported)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1-2-3"))
    assert Energy(torch.device("cuda", 0)).read() == expected
    assert nvml.asked == "GPU-1-2-3"


def test_energy_without_a_driver_is_not_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert Energy(torch.device("cuda", 0)).read() == {}
    assert Energy(torch.device("cpu")).read() == {}


def test_garbage_is_collected_at_steps_alone(tmp_path, monkeypatch):
    seen: list[tuple[int, bool]] = []
    module = Regression()
    plain = gc.collect
    monkeypatch.setattr(gc, "collect", lambda *a: seen.append((len(module.steps_seen), gc.isenabled())) or plain(*a))
    train(tmp_path, module=module, gc_every_steps=5)
    assert [step for step, _ in seen] == [0, 5, 10]
    assert not any(enabled for step, enabled in seen if step)
    seen.clear()
    train(tmp_path / "python", module=Regression(), gc_every_steps=0)
    assert not seen


class HostReads(TorchDispatchMode):
    """Counts the operations that make a host wait for a device."""

    NAMES = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.NAMES:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["none", "skip_step"])
def test_a_step_asks_the_device_nothing(tmp_path, monkeypatch, policy):
    """Forward, backward, clipping, judgement, optimizer and meters of a pre-training step."""
    inputs = write_corpus(tmp_path / "corpus")
    steps: list[list[str]] = []
    plain = HerdModule.training_step

    def watched(self, batch: object, batch_idx: int) -> None:
        with HostReads() as reads:
            plain(self, batch, batch_idx)
        steps.append(reads.found)

    monkeypatch.setattr(HerdModule, "training_step", watched)
    settings = config(curriculum__tokens=2048, trainer__spikes={"policy": policy, "window": 4, "least": 2})
    pretrain_stage.run(settings, inputs, StageRun(tmp_path / "run", seed=0))
    assert len(steps) > 5
    assert not any(steps)


def test_the_watch_over_host_reads_sees_one():
    with HostReads() as reads:
        float(torch.ones(3).sum())
    assert reads.found == ["_local_scalar_dense"]


def test_squares_of_a_step_are_those_of_its_documents(tmp_path):
    from herd.corpus.mixture import Mixture
    from herd.corpus.shards import TokenShards
    from herd.training.curriculum import Curriculum
    from herd.training.pretrain import PretrainSource

    inputs = write_corpus(tmp_path)
    curriculum = Curriculum(config().curriculum, config().mix.weights, 2e-2)
    mixture = Mixture(TokenShards(inputs["tokens"] / "tokens"), "train", curriculum.mixture_phases(), 0)
    batch = PretrainSource(mixture, curriculum, 64)[20]
    rows: list[PackedRows] = batch.micro_batches
    assert batch.squares == sum(n * n for part in rows for row in part.lengths for n in row)
    assert batch.for_rank(0, 2).squares == batch.squares  # of the global batch


def test_8_bit_products_are_held_against_the_peak_of_8_bits(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    assert peak_here("gpu", "bf16") == 989.4e12
    assert peak_here("gpu", "bf16", fp8=True) == 1978.9e12
    assert peak_here("cpu", "bf16", fp8=True) is None
