"""`herd pretrain` on a small corpus: what it leaves, that it learns, that it resumes to the bit, what it refuses."""

import json
import math
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pretrain_standin import VOCAB, config, write_corpus
from training_standin import Child, Killed, timeless

from herd.config.errors import UserError
from herd.corpus.mixture import Mixture
from herd.corpus.packing import PackedRows
from herd.corpus.shards import TokenShards
from herd.model.config import ModelConfig
from herd.model.io import load_model
from herd.model.transformer import Transformer
from herd.runs.metrics import read_metrics
from herd.runs.stage import Artifact, Inputs, StageRun, address_of, execute
from herd.training import pretrain_stage
from herd.training.curriculum import Curriculum
from herd.training.engine import EngineConfig
from herd.training.fit import fit
from herd.training.heldout import heldout_loss
from herd.training.module import HerdModule
from herd.training.optimizer import OptimizerConfig
from herd.training.pretrain import PretrainModule, PretrainSource
from herd.training.steps import StepBatch
from herd.training.trainer_config import TrainerConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "pretrain_tiny.json"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def straight(inputs, tmp_path_factory):
    """(folder, metrics) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, pretrain_stage.run(config(), inputs, StageRun(folder, seed=0))


def files(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves, but its checkpoints and the metrics (which hold a rate)."""
    found = [p for p in folder.rglob("*") if p.is_file() and ".scratch" not in p.parts and p.name != "metrics.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_leaves_what_the_contract_names(straight):
    folder, metrics = straight
    stages = ["initial", "long", "annealing"]
    assert {"model/model.safetensors", "model/config.json", "curriculum.json"} <= files(folder).keys()
    assert [load_model(folder / "stages" / stage).config.max_seq_len for stage in stages] == [32, 64, 64]
    assert load_model(folder / "stages" / "initial").config.rope_scaling is None
    final = load_model(folder / "model").config
    assert final.rope_scaling is not None
    assert (final.rope_scaling.factor, final.vocab_size) == (2.0, VOCAB)
    assert metrics["tokens"] == sum(p["tokens"] for p in json.loads((folder / "curriculum.json").read_text())["phases"])
    assert metrics["flops"] == 6 * metrics["tokens"] * metrics["parameters_6N"]
    assert metrics["parameters_6N"] == metrics["parameters"] - 5 * 16 - VOCAB * 16  # without norms and input embedding
    assert metrics["loss_by_stage"].keys() == set(stages)
    json.dumps(metrics, allow_nan=False)


def test_rows_of_metrics_follow_the_stages(straight):
    folder, metrics = straight
    rows = read_metrics(folder / "metrics.jsonl")
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert rows[-1]["num_tokens"] == metrics["tokens"]
    ends = [row for row in rows if "eval_loss" in row]
    assert [row["stage"] for row in ends] == ["initial", "long", "annealing"]
    assert ends[0]["eval_loss"] == metrics["initial_loss"]
    assert ends[-1]["eval_loss/code"] == metrics["loss_by_domain"]["code"]
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second", "seq_len", "batch_tokens"} <= rows[0].keys()


def test_learns_and_heldout_loss_is_mixed_by_the_initial_mix(straight):
    _, metrics = straight
    assert metrics["loss"] < metrics["initial_loss"] < 0.75 * math.log(VOCAB)
    by_domain = metrics["loss_by_domain"]
    assert metrics["loss"] == pytest.approx(0.6 * by_domain["general"] + 0.4 * by_domain["code"], rel=1e-12)


def test_heldout_loss_equals_a_plain_computation(straight, inputs):
    folder, metrics = straight
    model = load_model(folder / "model")
    shards = TokenShards(inputs["tokens"] / "tokens")
    scores = heldout_loss(model, shards, seq_len=32)
    for domain in ("general", "code"):
        source = shards.source("heldout", domain)
        total, count = 0.0, 0
        for begin, end in zip(source.offsets[:-1], source.offsets[1:], strict=True):
            document = torch.tensor(source.tokens[begin:end].astype(int))
            for at in range(0, len(document) - 1, 32):
                window, targets = document[at : at + 32][: len(document) - 1 - at], document[at + 1 : at + 33]
                logits = model.logits(model(window[None]))[0]
                total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
                count += len(targets)
        assert scores[domain]["tokens"] == count
        assert scores[domain]["nll"] == pytest.approx(total, rel=1e-5)
        assert scores[domain]["bytes"] == source.bytes.sum()
    limited = heldout_loss(model, shards, seq_len=32, limit_tokens=400)
    assert sum(score["tokens"] for score in limited.values()) <= 400
    assert metrics["loss_by_domain"]["code"] == limited["code"]["nll"] / limited["code"]["tokens"]


def test_final_model_is_the_average_of_the_annealing(straight, inputs, tmp_path, monkeypatch):
    taken = {}
    plain = pretrain_stage.AtStageEnds.on_train_batch_end

    def watch(self, trainer, module, *rest):
        taken[trainer.global_step] = {k: v.clone() for k, v in module.model.state_dict().items()}
        plain(self, trainer, module, *rest)

    monkeypatch.setattr(pretrain_stage.AtStageEnds, "on_train_batch_end", watch)
    pretrain_stage.run(config(), inputs, StageRun(tmp_path, seed=0))
    curriculum = Curriculum(config().curriculum, config().mix.weights, 2e-2)
    end, first = curriculum.steps, curriculum.stage_ends()["long"]
    points = [first + (end - first) * k // 3 for k in (1, 2, 3)]
    final = load_model(tmp_path / "model").state_dict()
    last = load_model(tmp_path / "stages/annealing").state_dict()
    assert any(not torch.equal(final[name], last[name]) for name in final)
    for name, weight in final.items():
        mean = torch.stack([taken[point][name].double() for point in points]).mean(0)
        torch.testing.assert_close(weight, mean.float(), rtol=1e-6, atol=1e-8)
        assert torch.equal(last[name], taken[end][name])


@pytest.mark.parametrize("place", ["ramp", "stage end", "after stage end", "annealing", "last step"])
def test_resume_is_bit_identical(straight, inputs, tmp_path, monkeypatch, place):
    curriculum = Curriculum(config().curriculum, config().mix.weights, 2e-2)
    ends = curriculum.stage_ends()
    step = {
        "ramp": curriculum.phases[1].first_step + 1,
        "stage end": ends["initial"],
        "after stage end": ends["initial"] + 2,
        "annealing": ends["annealing"] - 2,
        "last step": ends["annealing"],
    }[place]

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, *rest):  # before callbacks that save
            if trainer.global_step == step:
                raise Killed

    def interrupted(module, source, trainer_config, run, callbacks, **named):
        return fit(module, source, trainer_config, run, [Kill(), *callbacks], **named)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_stage, "fit", interrupted)
        with pytest.raises(Killed):
            pretrain_stage.run(config(), inputs, StageRun(tmp_path, seed=0))
    metrics = pretrain_stage.run(config(), inputs, StageRun(tmp_path, seed=0))
    assert files(tmp_path) == files(straight[0])
    assert timeless(tmp_path) == timeless(straight[0])
    assert metrics["loss"] == straight[1]["loss"]


def test_sigkill_at_random_steps_changes_no_bit(straight, inputs, tmp_path):
    def work(tick):
        def slowly(self, step, before=PretrainModule.before_step):
            tick()
            time.sleep(0.005)
            before(self, step)

        PretrainModule.before_step = slowly  # in the child alone
        pretrain_stage.run(config(), inputs, StageRun(tmp_path, seed=0))

    dice = random.Random(5)
    steps = 0
    for _ in range(5):
        child = Child(work)
        steps += child.wait_for(dice.randint(6, 12))
        time.sleep(dice.random() * 0.02)  # somewhere inside a step, or a checkpoint
        child.process.kill()
        assert child.end() == -signal.SIGKILL
    child = Child(work)
    steps += child.wait_for(1000)
    assert child.end() == 0
    total = json.loads((straight[0] / "curriculum.json").read_text())["phases"][-1]
    assert steps > total["first_step"] + total["steps"]  # some were made twice
    assert files(tmp_path) == files(straight[0])
    assert timeless(tmp_path) == timeless(straight[0])


class OneBatch:
    """The same micro-batches in every step."""

    def __init__(self, micro_batches: list[PackedRows], steps: int) -> None:
        self.micro_batches, self.steps = micro_batches, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> StepBatch:
        targets = float(sum(rows.target_count for rows in self.micro_batches))
        return StepBatch(step, self.micro_batches, targets, sum(rows.tokens.numel() for rows in self.micro_batches))

    def tokens_at(self, step: int) -> int:
        return step * self[0].tokens


def small_model(dim: int = 16, seed: int = 0) -> Transformer:
    model = Transformer(ModelConfig(dim, 2, 2, 1, 2 * dim, VOCAB, 64))
    model.init_weights(seed)
    return model


class Plain(PretrainModule):
    """Without a curriculum: a constant learning rate, RoPE as built."""

    def __init__(self, model: Transformer, lr: float) -> None:
        HerdModule.__init__(self, model, OptimizerConfig(lr=lr, weight_decay=0.0), lambda step: lr)

    def before_step(self, step: int) -> None:
        pass

    def level_changes(self, step: int) -> bool:
        return False

    def step_flops(self, batch: StepBatch) -> None:
        return None

    def step_fields(self, step: int) -> dict:
        return {}


def rows_of(inputs: Inputs, count: int, seq_len: int) -> PackedRows:
    from herd.corpus.mixture import Phase

    phase = Phase(count, seq_len, {"general": 0.5, "code": 0.5})
    return Mixture(TokenShards(inputs["tokens"] / "tokens"), "train", [phase], seed=0).rows(0, 0, count)


def test_accumulation_equals_one_batch_on_ragged_documents(inputs, tmp_path):
    rows = rows_of(inputs, 8, 64)
    assert len({len(lengths) for lengths in rows.lengths}) > 1  # ragged
    results = []
    for per_micro_batch in (8, 1):
        module = Plain(small_model().double(), lr=1e-2)
        source = OneBatch(rows.split(per_micro_batch), steps=4)
        result = fit(module, source, TrainerConfig(), StageRun(tmp_path / str(per_micro_batch), seed=0))
        results.append((result.last, module.model.state_dict()))
    (whole, weights), (parts, other) = results
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-6)
    assert whole["grad_norm"] == pytest.approx(parts["grad_norm"], rel=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-6, atol=1e-9)


def test_golden_trajectory(straight):
    """The loss of each logged interval, committed; processors differ in the last digits, hence the tolerance.

    Written by `python tests/training/test_pretrain.py` when the recipe of a step changes on purpose.
    """
    golden = json.loads(GOLDEN.read_text())
    rows = read_metrics(straight[0] / "metrics.jsonl")
    assert [row["step"] for row in rows] == golden["step"]
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [row[key] for row in rows] == pytest.approx(golden[key], rel=1e-4), key
    assert straight[1]["loss_by_stage"] == pytest.approx(golden["loss_by_stage"], rel=1e-4)


def test_bf16_autocast_trains(inputs, tmp_path):
    results = {}
    for precision in ("fp32", "bf16"):
        module = Plain(small_model(), lr=1e-2)
        source = OneBatch([rows_of(inputs, 2, 32)], steps=4)
        trainer = TrainerConfig(precision=precision)
        results[precision] = fit(module, source, trainer, StageRun(tmp_path / precision, seed=0)).last["loss"]
        assert module.model.output_weight.dtype == torch.float32
    assert results["bf16"] == pytest.approx(results["fp32"], rel=0.02)
    assert results["bf16"] != results["fp32"]


def test_engine_changes_nothing_but_rounding(inputs, tmp_path, straight):
    engine = EngineConfig(recompute="selective", attention="documents")
    spared = replace(config(), trainer=replace(config().trainer, engine=engine))
    loss = pretrain_stage.run(spared, inputs, StageRun(tmp_path, seed=0))["loss"]
    assert loss == pytest.approx(straight[1]["loss"], rel=1e-4)


def test_z_loss_is_part_of_the_loss_and_reported_beside_it(inputs):
    rows, curriculum = rows_of(inputs, 2, 32), Curriculum(config().curriculum, config().mix.weights, 1e-2)
    results = []
    for z_loss in (0.0, 1e-2):
        module = PretrainModule(small_model(), OptimizerConfig(), curriculum, z_loss=z_loss)
        results.append(module.micro_batch_loss(rows))
    (plain, nothing), (whole, metrics) = results
    added, count = metrics["z_loss"]
    assert not nothing
    assert added > 0
    assert count == rows.target_count
    torch.testing.assert_close(whole, plain + added)
    with pytest.raises(UserError, match="z_loss = -1"):
        replace(config(), z_loss=-1.0)


def test_seed_changes_weights_and_order_not_the_evaluation(inputs, tmp_path, straight):
    metrics = pretrain_stage.run(config(seed=1), inputs, StageRun(tmp_path, seed=1))
    assert metrics["loss"] != straight[1]["loss"]
    shards = TokenShards(inputs["tokens"] / "tokens")
    assert heldout_loss(small_model(), shards, 32, 300) == heldout_loss(small_model(), shards, 32, 300)


def test_source_is_a_pure_function_of_the_step(inputs):
    curriculum = Curriculum(config().curriculum, config().mix.weights, 2e-2)
    shards = TokenShards(inputs["tokens"] / "tokens")

    def source() -> PretrainSource:
        return PretrainSource(Mixture(shards, "train", curriculum.mixture_phases(), 0), curriculum, 96)

    walked, asked = source(), source()
    steps = [walked[step] for step in range(len(walked))]
    for step in (curriculum.steps - 1, 0, 17):
        again = asked[step]
        assert again.normalizer == steps[step].normalizer == sum(m.target_count for m in again.micro_batches)
        for a, b in zip(again.micro_batches, steps[step].micro_batches, strict=True):
            assert torch.equal(a.tokens, b.tokens)
            assert a.tokens.numel() <= 96


def test_flagship_sets_shape_tokens_batch_and_rate(inputs, tmp_path):
    shape = {
        "dim": 24,
        "n_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 1,
        "ffn_dim": 32,
        "vocab_size": VOCAB,
        "max_seq_len": 32,
    }
    chosen = {"model": shape, "tokens": 4096, "batch_tokens": 128, "lr": 5e-3}
    (tmp_path / "flagship.json").write_text(json.dumps(chosen))
    flagship = Artifact(tmp_path, {"stage": "scaling-fit"})
    forecast = pretrain_stage.as_forecast(config(), flagship)
    assert (forecast.model.dim, forecast.curriculum.tokens, forecast.curriculum.batch_tokens) == (24, 4096, 128)
    assert forecast.optimizer.lr == 5e-3
    assert forecast.curriculum.stages == config().curriculum.stages
    both = Inputs({"tokens": inputs["tokens"], "flagship": flagship}, {})
    metrics = pretrain_stage.run(config(), both, StageRun(tmp_path / "run", seed=0))
    assert metrics["initial_tokens"] == 4096
    assert load_model(tmp_path / "run/model").config.dim == 24
    (tmp_path / "flagship.json").write_text(json.dumps({"model": shape}))
    with pytest.raises(UserError, match="has no 'tokens'"):
        pretrain_stage.as_forecast(config(), flagship)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__vocab_size": VOCAB - 1}, "model.vocab_size is 47"),
        ({"mix__weights": {"general": 0.5, "cod": 0.5}}, "'cod'.*Did you mean 'code'"),
        ({"mix__weights": {"general": 0.5}}, "sum to 0.5"),
        ({"curriculum__batch_tokens": 250}, "no whole number of rows"),
        ({"model__max_seq_len": 16, "eval_seq_len": 16}, "rows of 32 tokens, the model's positions end at 16"),
        ({"eval_seq_len": 64}, "eval_seq_len 64 exceeds"),
        ({"curriculum__tokens": 100}, "less than one batch"),
        ({"trainer__precision": "fp4"}, "Unknown trainer.precision"),
    ],
)
def test_bad_configurations_are_refused_before_the_first_step(inputs, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(pretrain_stage, "fit", lambda *args, **named: pytest.fail("training began"))
    with pytest.raises(UserError, match=message) as caught:
        pretrain_stage.run(config(**changes), inputs, StageRun(tmp_path, seed=0))
    assert "\n" not in str(caught.value)


def test_damaged_shards_are_refused(tmp_path):
    inputs = write_corpus(tmp_path / "corpus")
    path = inputs["tokens"] / "tokens/train/code/tokens.bin"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        pretrain_stage.run(config(), inputs, StageRun(tmp_path / "run", seed=0))


def test_checkpoint_of_another_curriculum_is_refused(inputs, tmp_path):
    pretrain_stage.run(config(), inputs, StageRun(tmp_path, seed=0))
    with pytest.raises(UserError, match=r"another run .different: optimizer"):
        pretrain_stage.run(config(optimizer__lr=1e-3), inputs, StageRun(tmp_path, seed=0))


def test_plan_needs_no_data():
    lines = list(pretrain_stage.plan_lines(config(model__vocab_size=VOCAB)))
    assert lines[-1].startswith("total: ")
    assert sum("steps" in line for line in lines[1:-1]) == 4
    assert "RoPE x2" in "".join(lines)
    assert replace(config(), seed=1).seed == 1


def write_golden() -> None:
    """Record the trajectory anew."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        inputs = write_corpus(Path(folder) / "corpus")
        metrics = pretrain_stage.run(config(), inputs, StageRun(Path(folder) / "run", seed=0))
        rows = read_metrics(Path(folder) / "run/metrics.jsonl")
    table = {key: [row[key] for row in rows] for key in ("step", "loss", "grad_norm", "learning_rate")}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(table | {"loss_by_stage": metrics["loss_by_stage"]}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_golden()


def test_the_order_of_the_stages_is_part_of_the_address():
    stages = list(config().curriculum.stages.items())
    swapped = replace(config(), curriculum=replace(config().curriculum, stages=dict([stages[0], stages[2], stages[1]])))
    addresses = {address_of(pretrain_stage.STAGE, c, Inputs({}, {})) for c in (config(), swapped)}
    assert len(addresses) == 2


def test_a_killed_command_goes_on_with_other_workers_and_checkpoints(inputs, tmp_path, monkeypatch):
    """The command, not the stage alone: how a run is carried out must not make it another run."""
    how = {"trainer__num_workers": 1, "trainer__log_every_steps": 3, "trainer__keep_best": 1, "trainer__micro_batch_tokens": 64}
    plain = PretrainModule.before_step

    def before_step(self, step):
        if step == 9:
            raise Killed
        plain(self, step)

    def address(**changes):
        return address_of(pretrain_stage.STAGE, config(**changes), Inputs({}, {}))

    assert address(**how) == address()
    decisive = ({"optimizer__lr": 1e-3}, {"trainer__precision": "bf16"}, {"trainer__spikes": {"policy": "skip_step"}})
    assert len({address(), *(address(**change) for change in decisive)}) == 4
    stage = replace(pretrain_stage.STAGE, inputs=(), run=lambda config, _, run: pretrain_stage.run(config, inputs, run))
    small = {"curriculum__tokens": 2048}
    monkeypatch.setattr(PretrainModule, "before_step", before_step)
    with pytest.raises(Killed):
        execute(stage, config(**small), {}, tmp_path, "run")
    monkeypatch.setattr(PretrainModule, "before_step", lambda self, step: seen.append(step) or plain(self, step))
    seen: list[int] = []
    execute(stage, config(**small, **how), {}, tmp_path, "run")
    assert seen[0] == 7
