"""One round of post-training through the stages, on a model of a few thousand weights."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from documented import NOUNS, VERBS, documents_in

from herd.alignment import (
    average_stage,
    best_stage,
    dialogs_stage,
    dpo_stage,
    heldout_pairs,
    preferences_stage,
    reject_stage,
    reward_stage,
    sft_stage,
)
from herd.alignment.fine_tuning import train
from herd.alignment.lineage import row_lineage
from herd.alignment.reference_cache import cached_reference
from herd.cli import main
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Grade, Preference, read_preferences
from herd.dialog.rows import Counted, read_jsonl, read_prompts, write_jsonl
from herd.generation.chat import Answer
from herd.model.config import ModelConfig
from herd.model.counts import parameter_count
from herd.model.io import load_model, load_reward_model, read_weights, save_model
from herd.model.transformer import Linear, Transformer
from herd.recipe.job import make_job
from herd.runs.atomic import sha256_json, write_json
from herd.runs.stage import Artifact, StageRun, execute
from herd.training import engine as training_engine
from herd.training.dpo import DPOSteps, dpo_pairs, dpo_terms
from herd.training.sequences import EpochSteps
from herd.training.sft import SFTModule
from herd.training.steps import StepBatch

QUICK = ["window=256", "epochs=1", "batch_size=8", "trainer.log_every_steps=1"]


def config_of(command: str, *overrides: str):
    return make_job(command, compose(command, list(overrides))).config


def finished(folder, stage: str) -> Artifact:
    address = sha256_json([stage, str(folder)])
    write_json(folder / "manifest.json", {"stage": stage, "address": address, "metrics": {}, "outputs": {}})
    return Artifact.open(folder)


class Round:
    """A base model, a tokenizer and everything a round makes of them."""

    def __init__(self, documents, root) -> None:
        self.root = root
        self.inputs = {"documents": documents}
        text = " ".join(f"{v} the {n} of x number" for v in VERBS for n in NOUNS) + " What does it do? assistant user\n\n"
        config = TokenizerConfig(vocab_size=400, special_tokens=11, training_characters=50_000, fill_with_reserved=True)
        tokenizer = train_tokenizer([text], config)
        tokenizer.save(root / "tokens" / "tokenizer")
        finished(root / "tokens", "tokenize")
        shape = ModelConfig(
            dim=16,
            n_layers=1,
            n_heads=2,
            n_kv_heads=1,
            ffn_dim=32,
            vocab_size=400,
            max_seq_len=256,
            tie_embeddings=True,
        )
        save_model(Transformer(shape), root / "base" / "model")
        finished(root / "base", "pretrain")

    def run(self, stage, inputs, *overrides, node=None):
        config = config_of(stage.name, *overrides)
        given = {
            name: {k: str(v) for k, v in value.items()} if isinstance(value, dict) else str(value)
            for name, value in inputs.items()
        }
        return execute(stage, config, given, self.root / "runs", "test", node)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every artifact of a round, by name."""
    root = tmp_path_factory.mktemp("round")
    r = Round(documents_in(root / "documents"), root)
    made = {"tokens": root / "tokens", "base": root / "base"}
    made["dialogs"] = r.run(
        dialogs_stage.STAGE, r.inputs, "seed_dialogs=20", "seed_turns=1", "train_prompts=40", "heldout_prompts=20"
    ).path
    made["preferences"] = r.run(preferences_stage.STAGE, {"dialogs": made["dialogs"]}, "prompts=40", "heldout_prompts=20").path
    base = {"tokens": made["tokens"], "base": made["base"]}
    made["reward"] = r.run(reward_stage.STAGE, base | {"preferences": {"one": made["preferences"]}}, *QUICK).path
    made["sft"] = r.run(sft_stage.STAGE, base | {"dialogs": {"seed": made["dialogs"]}, "heldout": made["dialogs"]}, *QUICK).path
    made["reject"] = r.run(
        reject_stage.STAGE,
        {"tokens": made["tokens"], "generator": made["sft"], "reward": made["reward"], "prompts": made["dialogs"]},
        "prompts=6",
        "samples=3",
        "max_new_tokens=24",
    ).path
    tuned = {"tokens": made["tokens"], "model": made["sft"], "preferences": made["preferences"]}
    for label, seed in (("dpo-a", 0), ("dpo-b", 1)):
        made[label] = r.run(dpo_stage.STAGE, tuned, *QUICK, f"seed={seed}", "optimizer.lr=1e-2", "epochs=6", node=label).path
    made["average"] = r.run(
        average_stage.STAGE,
        {
            "models": {"a": made["dpo-a"], "b": made["dpo-b"]},
            "tokens": made["tokens"],
            "heldout": made["dialogs"],
            "preferences": made["preferences"],
            "reference": made["sft"],
        },
    ).path
    made["best"] = r.run(
        best_stage.STAGE,
        {
            "tokens": made["tokens"],
            "prompts": made["dialogs"],
            "reward": made["reward"],
            "models": {"sft": made["sft"], "average": made["average"]},
        },
        "prompts=12",
        "max_new_tokens=16",
    ).path
    made["second"] = r.run(
        preferences_stage.STAGE,
        {"dialogs": made["dialogs"], "tokens": made["tokens"], "models": {"a": made["dpo-a"], "b": made["dpo-b"]}},
        "prompts=8",
        "heldout_prompts=8",
        "max_new_tokens=16",
        node="second",
    ).path
    return {name: Artifact.open(path) for name, path in made.items()} | {"round": r}


def test_preferences_are_graded_and_some_edited(made):
    rows = read_preferences(made["preferences"] / "preferences.jsonl")
    metrics = made["preferences"].metrics
    assert len(rows) == metrics["pairs"] == metrics["train"]["kept"] > 20
    assert sum(metrics["train"]["grades"].values()) == len(rows)
    assert all(row.scores["chosen"] > row.scores["rejected"] for row in rows)
    edited = [row for row in rows if row.edited]
    assert edited
    assert all(row.scores["chosen"] < 1.0 and row.models["edited"] == "reference" for row in edited)
    heldout = {p.id for p in read_prompts(made["dialogs"] / "heldout_prompts.jsonl")}
    assert {row.prompt_id for row in read_preferences(made["preferences"] / "heldout.jsonl")} <= heldout
    assert not {row.prompt_id for row in rows} & heldout


def test_reward_model_reports_its_accuracy_with_an_interval(made):
    metrics = made["reward"].metrics
    low, high = metrics["accuracy_interval"]
    assert 0 <= low <= metrics["accuracy"] <= high <= 1
    assert 0.5 <= metrics["length_accuracy"] <= 1
    assert metrics["newest_round"] == "one" and metrics["by_round"]["one"]["accuracy"] == metrics["accuracy"]
    kept = metrics["rows"]["one"]["kept"]
    assert kept == metrics["pairs"] + metrics["triples"] > 0
    dropped = metrics["rows"]["one"]["dropped"]
    assert kept + sum(dropped.values()) == made["preferences"].metrics["pairs"]
    assert load_reward_model(made["reward"] / "model").head.weight.abs().sum() > 0


def test_reward_accuracy_is_of_the_newest_round_and_never_pooled(made, monkeypatch):
    """A model that scores by length: right in one round where the chosen is longer, wrong where it is shorter."""
    tokenizer = Tokenizer.load(made["tokens"] / "tokenizer")
    config = config_of("reward", "window=256")
    monkeypatch.setattr(heldout_pairs, "score_groups", lambda model, groups, **_: [list(map(len, g.responses)) for g in groups])

    def pair(i, chosen, rejected):
        say = [(Message(Role.ASSISTANT, text),) for text in (chosen, rejected)]
        return Preference(f"p{i}", f"q{i}", (Message(Role.USER, "what?"),), *say, Grade.BETTER)

    long, short, same = "one two three four five six", "one", "two"
    rounds = {
        "a": [pair(i, long, short) for i in range(4)],
        "b": [*(pair(i, short, long) for i in range(3)), pair(3, long, short), pair(4, short, same), pair(5, same, short)],
        "c": [],
    }
    every = heldout_pairs.EVERY_GRADE
    held = {label: heldout_pairs.HeldoutPairs.read(rows, every, tokenizer, 256) for label, rows in rounds.items()}
    metrics = reward_stage.heldout_accuracy(None, held, config.filter)
    assert metrics["accuracy_by_round"] == {"a": 1.0, "b": 1 / 6}
    assert (metrics["newest_round"], metrics["accuracy"], metrics["heldout_pairs"]) == ("b", 1 / 6, 6)
    assert metrics["accuracy_interval"] == metrics["by_round"]["b"]["accuracy_interval"]
    assert metrics["length_accuracy"] == 4 / 6 and metrics["by_round"]["a"]["length_accuracy"] == 1.0


def test_sft_starts_from_the_base_and_lowers_the_loss_of_references(made):
    metrics = made["sft"].metrics
    assert metrics["loss"] < metrics["base_loss"]
    assert metrics["rows"]["seed"] == {"kept": 20, "dropped": {}, "an_epoch": 20}


def test_rejection_keeps_the_best_of_each_prompt(made):
    metrics, rows = made["reject"].metrics, [row for _, row in read_jsonl(made["reject"] / "dialogs.jsonl")]
    assert metrics["rows"]["kept"] == len(rows)
    assert len(rows) + sum(metrics["rows"]["dropped"].values()) == 6
    assert metrics["samples"] == 18
    for row in rows:
        assert row["reward"] >= row["mean_reward"]
        assert row["model"] == made["sft"].address[:16]
        assert row["messages"][-1]["role"] == "assistant"
    low, high = made["reject"].metrics["score_gain_interval"]
    assert low <= made["reject"].metrics["score_gain"] <= high


def test_steering_shapes_answers_and_is_named_in_the_row_alone(made):
    inputs = {"tokens": made["tokens"].path, "generator": made["sft"].path, "reward": made["reward"].path}
    inputs["prompts"] = made["dialogs"].path
    steering = ["Be brief.", "Name the types."]
    settings = ("prompts=6", "samples=3", "max_new_tokens=24", f"system_prompts={steering}")
    steered = made["round"].run(reject_stage.STAGE, inputs, *settings, node="steered")
    rows = [row for _, row in read_jsonl(steered / "dialogs.jsonl")]
    plain = [row for _, row in read_jsonl(made["reject"] / "dialogs.jsonl")]
    assert {row["steering"] for row in rows} <= {*steering} and {row["steering"] for row in plain} == {None}
    assert all(message["role"] != "system" for row in rows for message in row["messages"])
    assert [row["messages"][-1] for row in rows] != [row["messages"][-1] for row in plain]


def test_dpo_moves_the_held_out_margin(made):
    metrics = made["dpo-a"].metrics
    assert metrics["rewards/margins"] > 0
    assert metrics["rewards/accuracies"] > 0.5
    low, high = metrics["rewards/accuracies_interval"]
    assert low <= metrics["rewards/accuracies"] <= high
    logged = [json.loads(line) for line in (made["dpo-a"] / "metrics.jsonl").read_text().splitlines()]
    wanted = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "loss"}
    assert all(wanted <= set(row) for row in logged)
    # Seeds change the order of the pairs, hence the weights.
    a, b = read_weights(made["dpo-a"] / "model"), read_weights(made["dpo-b"] / "model")
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_what_the_window_drops_is_in_the_metrics(made):
    for stage in ("reward", "dpo-a"):
        metrics = made[stage].metrics
        for split, file in (("train", "preferences.jsonl"), ("heldout", "heldout.jsonl")):
            limit = metrics["length_limit"][split]
            rows = read_preferences(made["preferences"] / file)
            assert 0 < limit["left"]["pairs"] <= limit["pairs"] <= len(rows)
            assert limit["dropped"] == limit["pairs"] - limit["left"]["pairs"] == sum(limit["over"].values())
        assert metrics["dropped_too_long"] == metrics["length_limit"]["train"]["dropped"]


def test_flops_bear_the_name_of_their_convention(made):
    """6N a token, N with the output head and without the input embedding; null where none are counted."""
    for stage in ("sft", "reward", "dpo-a"):
        cost = made[stage].manifest["cost"]
        assert cost["flops_6N"] == 6 * cost["tokens"] * parameter_count(load_model(made["sft"] / "model").config, "6N") > 0
    for stage in ("dialogs", "reject", "best"):
        assert made[stage].manifest["cost"]["flops_6N"] is None


def test_average_is_the_mean_and_is_measured_beside_its_members(made):
    a, b, mean = (read_weights(made[name] / "model") for name in ("dpo-a", "dpo-b", "average"))
    for name in mean:
        assert torch.equal(mean[name], ((a[name].double() + b[name].double()) / 2).float())
    metrics = made["average"].metrics
    assert set(metrics["by_member"]) == {"a", "b"}
    keys = {"loss", "rewards/accuracies", "rewards/margins", "nll_loss"}
    assert keys == set(metrics["by_member"]["a"]) <= set(metrics)
    # The same held-out pairs and the same definition as in the DPO stage itself.
    assert metrics["by_member"]["a"]["rewards/margins"] == pytest.approx(made["dpo-a"].metrics["rewards/margins"], rel=1e-4)
    for name in keys:
        found, sign = metrics["less_best_member"][name], 1 if name.startswith("rewards") else -1
        best = max("ab", key=lambda label: sign * metrics["by_member"][label][name])
        assert found["best_member"] == best
        assert found["difference"] == pytest.approx(sign * (metrics[name] - metrics["by_member"][best][name]))
        low, high = found["interval"]
        assert found["status"] == ("better" if low > 0 else "worse" if high < 0 else "no_difference_seen")
    assert metrics["status"] in ("ok", "worse")


def test_reward_models_are_averaged_by_weight_and_measured(made, tmp_path, monkeypatch):
    reward, tokens, preferences = (str(made[name].path) for name in ("reward", "tokens", "preferences"))
    other = load_reward_model(made["reward"] / "model")
    with torch.no_grad():
        other.head.weight.mul_(-1)  # puts every pair in the other order
    save_model(other, tmp_path / "turned" / "model")
    finished(tmp_path / "turned", "reward")
    inputs = {"models": {"one": reward, "turned": tmp_path / "turned"}, "tokens": tokens, "preferences": preferences}
    found = made["round"].run(average_stage.STAGE, inputs, "+weights.one=3", "+weights.turned=1", "window=256")
    mean, one = (load_reward_model(path / "model").head.weight for path in (found.path, made["reward"].path))
    assert torch.equal(mean, one / 2)  # 3/4 - 1/4
    metrics = found.metrics
    assert metrics["by_member"]["one"]["accuracy"] == made["reward"].metrics["accuracy"] == metrics["accuracy"]
    assert metrics["by_member"]["turned"]["accuracy"] == 1 - metrics["accuracy"]
    assert metrics["weights"] == {"one": 3, "turned": 1}
    assert metrics["less_best_member"]["accuracy"]["status"] in ("no_difference_seen", "worse")
    with pytest.raises(UserError, match=r"weights.on: no such model.*Did you mean 'one'"):
        made["round"].run(average_stage.STAGE, inputs, "+weights.on=1")
    with pytest.raises(UserError, match=r"weights.turned is missing"):
        made["round"].run(average_stage.STAGE, inputs, "+weights.one=1")
    monkeypatch.setattr(average_stage, "tokenizer_of", lambda artifact: artifact.path.name)
    with pytest.raises(UserError, match="one and turned were trained with different tokenizers"):
        made["round"].run(average_stage.STAGE, inputs)


def test_weights_of_an_average_are_checked():
    for given, words in (("-1", "at least 0"), ("0", "one of them above 0"), ("nan", "finite")):
        with pytest.raises(UserError, match=words):
            config_of("average", f"+weights.a={given}")


def test_second_round_compares_two_models(made):
    metrics = made["second"].metrics
    rows = read_preferences(made["second"] / "preferences.jsonl")
    counted = metrics["train"]
    assert counted["kept"] + sum(counted["dropped"].values()) == 8
    assert all({row.models["chosen"], row.models["rejected"]} == {"a", "b"} for row in rows)


def test_no_usable_answer_at_all_is_an_error_with_its_reasons(made):
    """One token is either a cut answer or the end of an empty one."""
    inputs = {"tokens": made["tokens"].path, "generator": made["sft"].path, "reward": made["reward"].path}
    asked = ("prompts=3", "samples=2", "max_new_tokens=1")
    with pytest.raises(UserError, match=r"^reject: no prompt has an answer to keep \(no_finished_answer 3\); raise max_new_tok"):
        made["round"].run(reject_stage.STAGE, inputs | {"prompts": made["dialogs"].path}, *asked, node="none")


def test_no_pair_at_all_is_an_error_with_its_reasons(made, tmp_path, monkeypatch):
    real, inputs = preferences_stage.flawed, {"dialogs": made["dialogs"].path}
    monkeypatch.setattr(preferences_stage, "flawed", lambda *a: {name: [two[0]] * 2 for name, two in real(*a).items()})
    with pytest.raises(
        UserError, match=r"^preferences: no pair is left \(chosen_equals_rejected 9\); the two answers are the same"
    ):
        made["round"].run(preferences_stage.STAGE, inputs, "prompts=9", node="none")
    people = f"annotation.folder={tmp_path / 'people'}"
    with pytest.raises(UserError, match=r"^preferences: no pair is left to be judged \(chosen_equals_rejected 9\); "):
        made["round"].run(preferences_stage.STAGE, inputs, "prompts=9", people, node="none")
    assert not (tmp_path / "people").exists()  # nothing goes out that nobody could judge


def test_one_model_alone_cannot_be_compared(made):
    inputs = {"dialogs": made["dialogs"].path, "tokens": made["tokens"].path, "models": {"a": made["dpo-a"].path}}
    with pytest.raises(UserError, match="two or more `models`"):
        made["round"].run(preferences_stage.STAGE, inputs)


def test_prompts_beyond_the_file_are_refused(made):
    with pytest.raises(UserError, match="0 prompts from index 999"):
        made["round"].run(preferences_stage.STAGE, {"dialogs": made["dialogs"].path}, "first_prompt=999")


def test_a_window_beyond_the_model_is_refused(made):
    inputs = {"tokens": made["tokens"].path, "base": made["base"].path, "dialogs": {"seed": made["dialogs"].path}}
    with pytest.raises(UserError, match="window 999 exceeds the model's 256"):
        made["round"].run(sft_stage.STAGE, inputs, "window=999")
    with pytest.raises(UserError, match=r"weights.sed: no dialogs of this label, only seed\. Did you mean 'seed'"):
        made["round"].run(sft_stage.STAGE, inputs, "++weights.sed=2", "window=256")
    with pytest.raises(UserError, match=r"weights.seed must be 0 or more, not -1"):
        made["round"].run(sft_stage.STAGE, inputs, "++weights.seed=-1", "window=256")


def test_a_reward_model_is_not_trained_to_write(made):
    dialogs = {"tokens": made["tokens"].path, "base": made["reward"].path, "dialogs": {"seed": made["dialogs"].path}}
    with pytest.raises(UserError, match=r"sft: inputs.base: .* is a reward model: it scores text and writes none"):
        made["round"].run(sft_stage.STAGE, dialogs, *QUICK, node="refused")
    pairs = {"tokens": made["tokens"].path, "model": made["reward"].path, "preferences": made["preferences"].path}
    with pytest.raises(UserError, match=r"dpo: inputs.model: .* is a reward model: it scores text and writes none"):
        made["round"].run(dpo_stage.STAGE, pairs, *QUICK, node="refused")


def test_a_trained_reward_model_is_no_base_of_another(made):
    inputs = {"tokens": made["tokens"].path, "base": made["reward"].path, "preferences": {"one": made["preferences"].path}}
    with pytest.raises(UserError, match=r"reward: inputs.base: .* is a reward model already: .* its own would be lost"):
        made["round"].run(reward_stage.STAGE, inputs, *QUICK, node="refused")


@pytest.mark.parametrize("row", ["block", "causal"])
def test_pairs_that_fit_one_by_one_are_trained_on_and_counted_apart(made, row):
    """At this window no three responses, and not all pairs of two, share a row: none of them is dropped."""
    inputs = {"tokens": made["tokens"].path, "base": made["base"].path, "preferences": {"one": made["preferences"].path}}
    found = made["round"].run(reward_stage.STAGE, inputs, *QUICK, "window=120", f"row={row}", node=f"apart-{row}").metrics
    rows, limit = found["rows"]["one"], found["length_limit"]["train"]
    assert rows["kept"] == found["pairs"] + found["triples"] == limit["left"]["pairs"]
    assert 0 < rows["apart"] < rows["kept"]
    assert {"row_too_long"}.isdisjoint(rows["dropped"]) and found["dropped_too_long"] == rows["dropped"].get("too_long", 0)


def test_every_model_left_behind_loads(made):
    tokenizer = Tokenizer.load(made["tokens"] / "tokenizer")
    for name in ("sft", "dpo-a", "average"):
        assert load_model(made[name] / "model").config.vocab_size == tokenizer.vocab_size


def test_each_kind_of_task_goes_to_the_model_that_its_answers_earn_most(made):
    answers = [row for _, row in read_jsonl(made["best"] / "answers.jsonl")]
    metrics = made["best"].metrics
    for task, best in metrics["best"].items():
        rewards = {
            label: [row["reward"] for row in answers if (row["task"], row["model"]) == (task, label)]
            for label in ("sft", "average")
        }
        means = {label: sum(values) / len(values) for label, values in rewards.items()}
        assert means[best] == max(means.values())
        behind = metrics["by_task"][task]
        assert behind[best]["behind_best"]["mean"] == 0 and behind["sft"]["reward"] == pytest.approx(means["sft"])
        assert all(one["behind_best"]["mean"] >= 0 for one in behind.values())
    assert {row["id"] for row in answers} <= {p.id for p in read_prompts(made["dialogs"] / "heldout_prompts.jsonl")}


def test_the_best_for_its_task_answers_each_prompt(made, tmp_path, monkeypatch):
    """Rejection sampling asks it alone, preferences set another beside it."""
    asked = []
    for stage in (reject_stage, preferences_stage):
        monkeypatch.setattr(
            stage,
            "open_writer",
            lambda *of, real=stage.open_writer: asked.append(of[-1].path) or real(*of),
        )
    write_json(tmp_path / "best.json", {"by_task": {"what": "sft", "call": "average"}, "otherwise": "average"})
    best = {"best": finished(tmp_path, "best").path, "models": {name: made[name].path for name in ("sft", "average", "dpo-a")}}
    shared = {"tokens": made["tokens"].path, **best}
    given = {"reward": made["reward"].path, "prompts": made["dialogs"].path}
    result = made["round"].run(reject_stage.STAGE, shared | given, "prompts=6", "samples=2", "max_new_tokens=24", node="by-best")
    rows = [row for _, row in read_jsonl(result / "dialogs.jsonl")]
    assert rows and all(row["model_label"] == ("sft" if row["task"] == "what" else "average") for row in rows)
    assert all(row["model"] == made[row["model_label"]].address[:16] for row in rows)
    assert asked and made["dpo-a"].path not in asked  # no model is opened that is not asked
    few = ("prompts=9", "heldout_prompts=3", "max_new_tokens=16")
    pairs = made["round"].run(preferences_stage.STAGE, shared | {"dialogs": made["dialogs"].path}, *few, node="pairs-of-best")
    task_of = {p.id: p.task for p in read_prompts(made["dialogs"] / "train_prompts.jsonl")}
    compared = read_preferences(pairs / "preferences.jsonl")
    assert compared
    for row in compared:
        writers = {row.models["chosen"], row.models["rejected"]}
        assert len(writers) == 2 and ("sft" if task_of[row.prompt_id] == "what" else "average") in writers
    with pytest.raises(UserError, match="names the model 'average', which is not among"):
        made["round"].run(reject_stage.STAGE, shared | given | {"models": {"sft": made["sft"].path}}, node="x")
    with pytest.raises(UserError, match="go together"):
        made["round"].run(reject_stage.STAGE, {k: v for k, v in (shared | given).items() if k != "models"}, node="x")


def told(path, row_id: str) -> dict[str, str]:
    """Name -> what `herd lineage FILE#ID` says of it; the row itself under ''."""
    lines = list(row_lineage(path, row_id))
    return {"": lines[0]} | {line[2:14].strip(): line[14:] for line in lines[1:] if line[2:14].strip()}


def test_a_row_is_traced_to_model_reward_prompt_and_page(made, capsys):
    rows = [row for _, row in read_jsonl(made["reject"] / "dialogs.jsonl")]
    lines = told(made["reject"] / "dialogs.jsonl", rows[0]["id"])
    assert made["reject"].address[:16] in lines[""] and rows[0]["prompt_id"] in lines["prompt"]
    assert lines["written by"].startswith(f"sft {made['sft'].address[:16]}")
    assert lines["reward by"].startswith(f"reward {made['reward'].address[:16]}")
    assert lines["sample"].startswith(f"{rows[0]['sample']} of 3, seed 0") and f"{rows[0]['reward']:.4f}" in lines["chosen for"]
    assert rows[0]["entry_id"] in lines["entry"] and lines["page"]
    with pytest.raises(SystemExit):
        main(["lineage", f"{made['reject'].path}#{rows[0]['id']}x"])
    said = capsys.readouterr().err
    assert f"none of its {len(rows)} rows has the id" in said and f"Did you mean '{rows[0]['id']}'" in said
    assert said.count("\n") == 1
    main(["lineage", f"{made['reject'].path}#{rows[0]['id']}"])
    assert capsys.readouterr().out.startswith(lines[""])


def test_a_preference_is_traced_to_both_models_and_its_grader(made):
    row = read_preferences(made["second"] / "preferences.jsonl")[0]
    lines = list(row_lineage(made["second"].path, row.id))
    by = {f"by dpo {made[f'dpo-{name}'].address[:16]} (dpo-{name})" for name in "ab"}
    assert by <= {line.strip() for line in lines}
    assert any(line.startswith("  graded by   the simulated grader") for line in lines)
    text = (made["second"] / "preferences.jsonl").read_text()
    try:
        (made["second"] / "preferences.jsonl").write_text(text + "\n")
        assert "CHANGED" in list(row_lineage(made["second"].path, row.id))[1]
    finally:
        (made["second"] / "preferences.jsonl").write_text(text)


def test_a_row_that_a_later_stage_kept_is_followed_to_where_it_was_made(made, tmp_path):
    row = next(row for _, row in read_jsonl(made["reject"] / "dialogs.jsonl"))
    write_jsonl(tmp_path / "dialogs.jsonl", [{"id": row["id"], "messages": row["messages"], "quality": 2, "judge": "a model"}])
    manifest = {"stage": "clean", "address": "0" * 64, "metrics": {}, "outputs": {}, "inputs": {"rows": str(made["reject"].path)}}
    write_json(tmp_path / "manifest.json", manifest)
    lines = told(tmp_path, row["id"])
    assert lines["quality"] == "2" and lines["judge"] == "a model"
    assert made["reject"].address[:16] in lines["made from"] and made["sft"].address[:16] in lines["written by"]
    assert "not among the outputs" in next(line for line in row_lineage(tmp_path, row["id"]) if "outputs" in line)


def test_lineage_goes_through_pruning_to_the_row_it_was_made_from(made, tmp_path):
    """Two sources with a row of one id: the one that `herd prune` noted, not the first that has it."""
    row = next(row for _, row in read_jsonl(made["reject"] / "dialogs.jsonl"))
    stranger = {"id": row["id"], "messages": [{"role": "user", "content": "else"}, {"role": "assistant", "content": "other"}]}
    write_jsonl(tmp_path / "rows" / "dialogs.jsonl", [stranger])
    imported = {"stage": "import-rows", "address": "1" * 64, "metrics": {}, "outputs": {}, "inputs": {}}
    write_json(tmp_path / "rows" / "manifest.json", imported)
    rows = [given | {"quality": {"source": label}} for label, given in (("a", stranger), ("b", row))]
    write_jsonl(tmp_path / "pruned" / "dialogs.jsonl", rows)
    sources = {"dialogs": {"a": str(tmp_path / "rows"), "b": str(made["reject"].path)}}
    manifest = {"stage": "prune", "address": "0" * 64, "config": {}, "metrics": {}, "outputs": {}, "inputs": sources}
    write_json(tmp_path / "pruned" / "manifest.json", manifest)
    lines = told(tmp_path / "pruned", f"b/{row['id']}")
    assert made["reject"].address[:16] in lines["made from"] and lines["written by"].startswith("sft")
    assert "import-rows" in told(tmp_path / "pruned", f"a/{row['id']}")["made from"]
    with pytest.raises(UserError, match=rf"2 rows have the id '{row['id']}': give one of a/{row['id']}, b/"):
        list(row_lineage(tmp_path / "pruned", row["id"]))
    answer = next(row for _, row in read_jsonl(made["best"] / "answers.jsonl"))
    with pytest.raises(UserError, match=f"give one of sft/{answer['id']}, average/"):
        list(row_lineage(made["best"].path, answer["id"]))


def test_rows_of_others_are_not_said_to_be_graded_by_rule(tmp_path):
    message = [{"role": "assistant", "content": "a"}]
    row = {"id": "f:1", "messages": [{"role": "user", "content": "q"}], "chosen": message, "rejected": message, "grade": "better"}
    write_jsonl(tmp_path / "preferences.jsonl", [row | {"source": {"file": "f", "row": 1}}])
    manifest = {"stage": "import-rows", "address": "0" * 64, "metrics": {}, "outputs": {}, "inputs": {}}
    write_json(tmp_path / "manifest.json", manifest)
    lines = told(tmp_path, "f:1")
    assert lines["graded by"].startswith("whoever made the rows") and lines["read from"] == "file f, row 1"


def test_models_of_another_dialect_are_refused_by_every_stage(made):
    r, tokens = made["round"], {"tokens": made["tokens"].path}
    two = {"a": made["dpo-a"].path, "b": made["dpo-b"].path}
    pairs, dialogs, reward = made["preferences"].path, made["dialogs"].path, made["reward"].path
    for stage, inputs, name in (
        (dpo_stage, {"model": made["sft"].path, "preferences": pairs}, "model"),
        (sft_stage, {"base": made["sft"].path, "dialogs": {"seed": dialogs}}, "base"),
        (reward_stage, {"base": made["sft"].path, "preferences": {"one": pairs}}, "base"),
        (average_stage, {"models": two}, "models.a"),
        (best_stage, {"models": two, "prompts": dialogs, "reward": reward}, "reward"),
        (preferences_stage, {"models": two, "dialogs": dialogs}, "models.a"),
        (reject_stage, {"generator": made["sft"].path, "reward": reward, "prompts": dialogs}, "reward"),
    ):
        with pytest.raises(UserError, match=rf"{stage.STAGE.name}: inputs.{name} was trained in dialect meta .*set dialect=meta"):
            r.run(stage.STAGE, tokens | inputs, "dialect=hf", node="x")


def test_a_reward_model_writes_nothing_in_any_stage(made):
    r, reward, dialogs = made["round"], made["reward"].path, made["dialogs"].path
    tokens, two = {"tokens": made["tokens"].path}, {"a": made["dpo-a"].path, "b": reward}
    measured = {"preferences": made["preferences"].path, "reference": reward}
    for stage, inputs, name in (
        (reject_stage, {"generator": reward, "reward": reward, "prompts": dialogs}, "generator"),
        (best_stage, {"models": two, "prompts": dialogs, "reward": reward}, "models.b"),
        (preferences_stage, {"models": two, "dialogs": dialogs}, "models.b"),
        (average_stage, {"models": {"a": made["dpo-a"].path, "b": made["dpo-b"].path}} | measured, "reference"),
    ):
        with pytest.raises(UserError, match=rf"{stage.STAGE.name}: inputs.{name}: .* is a reward model: it scores text"):
            r.run(stage.STAGE, tokens | inputs, node="x")
    with pytest.raises(UserError, match=r"Cannot average .* the one is a transformer model, the other a reward model"):
        r.run(average_stage.STAGE, {"models": two}, node="x")


def test_models_of_another_tokenizer_are_refused_by_every_stage(made, monkeypatch):
    """Tokens of another `herd tokenize`: ids stand for other text, and numbers come out all the same."""
    r, reward, dialogs, sft = made["round"], made["reward"].path, made["dialogs"].path, made["sft"].path
    monkeypatch.setattr("herd.dialog.trained_in.tokenizer_of", lambda artifact: artifact.manifest["stage"])
    two, pairs = {"a": made["dpo-a"].path, "b": made["dpo-b"].path}, made["preferences"].path
    for stage, inputs, name in (
        (reject_stage, {"generator": sft, "reward": reward, "prompts": dialogs}, "reward"),
        (best_stage, {"models": two, "prompts": dialogs, "reward": reward}, "reward"),
        (preferences_stage, {"models": two, "dialogs": dialogs}, "models.a"),
        (dpo_stage, {"model": sft, "preferences": pairs}, "model"),
        (sft_stage, {"base": made["base"].path, "dialogs": {"seed": dialogs}}, "base"),
        (reward_stage, {"base": made["base"].path, "preferences": {"one": pairs}}, "base"),
    ):
        with pytest.raises(UserError, match=rf"{stage.STAGE.name}: inputs.{name} .* trained with another tokenizer"):
            r.run(stage.STAGE, {"tokens": made["tokens"].path} | inputs, node="x")


def test_answers_longer_than_every_window_are_refused_before_sampling(made):
    inputs = {"tokens": made["tokens"].path, "generator": made["sft"].path, "reward": made["reward"].path}
    with pytest.raises(UserError, match=r"no prompt leaves 1001 of 256 positions free; lower max_new_tokens"):
        made["round"].run(reject_stage.STAGE, inputs | {"prompts": made["dialogs"].path}, "max_new_tokens=1000", node="x")


def test_the_same_model_under_two_names_is_refused(made):
    inputs = {"tokens": made["tokens"].path, "models": {"a": made["dpo-a"].path, "again": made["dpo-a"].path}}
    judged = {"prompts": made["dialogs"].path, "reward": made["reward"].path}
    for stage, more in ((preferences_stage, {"dialogs": made["dialogs"].path}), (average_stage, {}), (best_stage, judged)):
        with pytest.raises(UserError, match=r"inputs.models.a and inputs.models.again are the same model"):
            made["round"].run(stage.STAGE, inputs | more, node="x")


def answering(*texts: str):
    """A sampler whose K-th answer to every prompt is the K-th text; one that ends in ... was cut."""
    return lambda model, tokenizer, prompts, *rest: [
        [Answer(text, (1,), not text.endswith("..."), 0.0) for text in texts] for _ in prompts
    ]


def test_answers_that_the_reward_model_cannot_read_are_left_out(made, monkeypatch):
    """Bytes that are no character: a few sampled tokens whose text is encoded as hundreds."""
    inputs = {"tokens": made["tokens"].path, "reward": made["reward"].path, "prompts": made["dialogs"].path}
    settings = ("prompts=3", "max_new_tokens=24")
    monkeypatch.setattr(reject_stage, "sample_answers", answering("\ufffd" * 300, "the axis", "the norm", "a cut..."))
    rejected = made["round"].run(reject_stage.STAGE, inputs | {"generator": made["sft"].path}, *settings, "samples=3", node="u")
    rows = [row for _, row in read_jsonl(rejected / "dialogs.jsonl")]
    assert len(rows) == 3 and {row["candidates"] for row in rows} == {2} and {row["sample"] for row in rows} <= {1, 2}
    assert all(row["reward"] > row["mean_reward"] for row in rows)  # of two different answers the better one
    assert rejected.metrics["unread"] == 3 and rejected.metrics["rows"]["dropped"] == {}
    asked = []

    def first_unreadable(model, tokenizer, prompts, *rest):
        asked.append(rest[-1])
        return [
            [Answer("\ufffd" * 300 if i == 0 and len(asked) == 1 else "the axis", (1,), True, 0.0)] for i in range(len(prompts))
        ]

    monkeypatch.setattr(best_stage, "sample_answers", first_unreadable)
    models = {"sft": made["sft"].path, "average": made["average"].path}
    best = made["round"].run(best_stage.STAGE, inputs | {"models": models}, *settings, node="u-best")
    assert best.metrics["prompts"] == {"kept": 2, "dropped": {"answer_too_long": 1}} and asked == ["meta", "meta"]
    assert len(list(read_jsonl(best / "answers.jsonl"))) == 4


def test_pairs_of_one_prompt_are_one_example_of_an_interval(made, tmp_path):
    """Every held-out pair said three times over is no more evidence than once."""
    rows = [row for _, row in read_jsonl(made["preferences"] / "heldout.jsonl")]
    found = []
    for times in (1, 3):
        folder = tmp_path / str(times)
        write_jsonl(folder / "heldout.jsonl", [row | {"id": f"{row['id']}-{i}"} for row in rows for i in range(times)])
        write_jsonl(folder / "preferences.jsonl", [row for _, row in read_jsonl(made["preferences"] / "preferences.jsonl")])
        inputs = {"tokens": made["tokens"].path, "preferences": finished(folder, "preferences").path}
        dpo = made["round"].run(dpo_stage.STAGE, inputs | {"model": made["sft"].path}, *QUICK, node="x").metrics
        models = {"models": {"a": made["dpo-a"].path, "b": made["dpo-b"].path}, "reference": made["sft"].path}
        average = made["round"].run(average_stage.STAGE, inputs | models, "window=256", node="x").metrics
        found.append((dpo["rewards/accuracies_interval"], average["less_best_member"]["rewards/margins"]["interval"]))
        assert dpo["heldout_pairs"] == times * made["dpo-a"].metrics["heldout_pairs"]
    # The share of one prompt is 0 or 1, three times over: as many prompts as before count.
    assert found[0][0] == pytest.approx(found[1][0], abs=0.02)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-3, abs=1e-6)


def test_the_reference_is_found_again_for_the_same_model_alone(made, tmp_path):
    """Cached by weights and configuration: another RoPE base with the same weights gives other numbers."""
    config = config_of("dpo", *QUICK)
    tokenizer = Tokenizer.load(made["tokens"] / "tokenizer")
    rows = read_preferences(made["preferences"] / "preferences.jsonl")
    source = DPOSteps(dpo_pairs(rows, tokenizer, 256, config.objective, Counted()), config.objective, 8, 4096, 1.0, 0)
    folder, run = tmp_path / "model", StageRun(tmp_path / "run", seed=0)
    found = []
    for theta in (500_000.0, 500_000.0, 100.0):
        model = load_model(made["sft"] / "model")
        shape = replace(model.config, rope_theta=theta)
        other = Transformer(shape)
        other.load_state_dict(model.state_dict())
        save_model(other, folder)
        found.append(torch.cat(cached_reference(load_model(folder), source, config.trainer, run, folder)))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert len(list(run.scratch.glob("reference-*"))) == 2 and not list(run.scratch.rglob("*.tmp"))


def test_the_reference_is_in_the_policys_arithmetic(made, tmp_path, monkeypatch):
    """In 8 bits (stood in for on a CPU by weights rounded at each use) both still agree to the bit at the first step."""

    def rounded(block, recipe):
        assert recipe == "rowwise"
        maps = [module for module in block.modules() if isinstance(module, Linear)]
        for module in maps:
            exact = module.forward
            module.forward = lambda x, m=module: F.linear(x, m.weight.to(torch.float8_e4m3fn).to(x.dtype))
            assert exact is not module.forward
        return lambda: [module.__dict__.pop("forward") for module in maps]

    monkeypatch.setattr(training_engine, "fp8_linears", rounded)
    monkeypatch.setattr(training_engine, "require_fp8", lambda accelerator: None)
    tokenizer, folder = Tokenizer.load(made["tokens"] / "tokenizer"), made["sft"] / "model"
    rows = read_preferences(made["preferences"] / "preferences.jsonl")
    run, found = StageRun(tmp_path / "run", seed=0), {}
    for kind in ("none", "rowwise"):
        config = config_of("dpo", *QUICK, f"+trainer.engine.fp8={kind}")
        source = DPOSteps(dpo_pairs(rows, tokenizer, 256, config.objective, Counted()), config.objective, 8, 4096, 1.0, 0)
        source.reference = cached_reference(load_model(folder), source, config.trainer, run, folder)
        found[kind] = torch.cat(source.reference)
        policy = load_model(folder)
        with training_engine.engine(policy, config.trainer.engine, "cpu"), torch.no_grad():
            terms = [dpo_terms(policy, batch, config.objective) for batch in source[0].micro_batches]
        assert all(torch.equal(t["rewards/margins"], torch.zeros_like(t["rewards/margins"])) for t in terms)
    assert (found["none"] - found["rowwise"]).abs().max() > 1e-3
    config = config_of("dpo", *QUICK, "trainer.accelerator=gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no GPU here"):
            cached_reference(load_model(folder), source, config.trainer, run, folder)


def test_processes_that_cannot_share_a_step_are_refused_before_the_first(made, tmp_path):
    config = config_of("sft", "parallel@trainer=ddp", "trainer.devices=2")
    source = EpochSteps([10] * 4, 3, 1.0, 0, lambda step, units: StepBatch(step, list(units), 1.0, 10))
    module = SFTModule(load_model(made["sft"] / "model"), config.optimizer, lambda step: 0.0)
    with pytest.raises(UserError, match=r"cannot be shared equally by 2 processes \(a step has 3 micro-batches"):
        train(module, source, config, module.model.config, StageRun(tmp_path, seed=0))


def test_a_reward_model_that_could_not_be_measured_is_not_trained(made, tmp_path, monkeypatch):
    write_jsonl(tmp_path / "preferences.jsonl", [row for _, row in read_jsonl(made["preferences"] / "preferences.jsonl")])
    write_jsonl(tmp_path / "heldout.jsonl", [])  # heldout_share=0 of `herd import-rows`
    inputs = {"tokens": made["tokens"].path, "base": made["base"].path}
    monkeypatch.setattr(reward_stage, "train", lambda *args: pytest.fail("trained first"))
    with pytest.raises(UserError, match="reward: no held-out pair is left to measure accuracy on"):
        made["round"].run(reward_stage.STAGE, inputs | {"preferences": {"one": finished(tmp_path, "preferences").path}}, *QUICK)


def app_of(artifact, tokenizer):
    """What `herd serve` of a model answers with."""
    pytest.importorskip("httpx", reason="needs the extra `serve`")
    from herd.generation.engine import Engine
    from herd.generation.openai.app import Served, make_app
    from herd.generation.service import Service

    engine = Engine(load_model(artifact / "model").requires_grad_(False), 16, 8192)
    return make_app(Served("mine", tokenizer, Service(engine), window=256, longest=20))


def test_a_server_draws_what_our_own_engine_draws(made, listening):
    """`herd reject`, sampled: the same dialogs, at another address, which says nothing of where the server was."""
    inputs = {"tokens": made["tokens"].path, "reward": made["reward"].path, "prompts": made["dialogs"].path}
    inputs |= {"generator": made["sft"].path}
    settings = ("prompts=5", "samples=3", "max_new_tokens=20", "seed=4")
    own = made["round"].run(reject_stage.STAGE, inputs, *settings, node="own")
    with listening(app_of(made["sft"], Tokenizer.load(made["tokens"] / "tokenizer"))) as url:
        by_server = made["round"].run(reject_stage.STAGE, inputs, *settings, "engine=server", f"engine.url={url}", node="served")
    assert own.metrics["dialogs"] and own.address != by_server.address
    rows = [[row for _, row in read_jsonl(made_by / "dialogs.jsonl")] for made_by in (own, by_server)]
    assert rows[0] == rows[1]
    assert own.metrics["engine"] == {"generator": {"kind": "herd"}}
    told = by_server.metrics["engine"]["generator"]
    assert (told["kind"], told["software"], told["model"]) == ("server", "herd", "mine") and told["logprob_difference"] < 1e-4
    # The server is gone, and another one would be asked: what is there is found.
    elsewhere = ("engine=server", "engine.url=http://127.0.0.1:1", "engine.retries=0")
    assert made["round"].run(reject_stage.STAGE, inputs, *settings, *elsewhere, node="again").address == by_server.address
    with pytest.raises(UserError, match=r"engine: no server answers at http://127\.0\.0\.1:1"):
        made["round"].run(reject_stage.STAGE, inputs, *settings, "first_prompt=1", *elsewhere, node="x")


def test_one_running_server_does_not_answer_for_two_models(made):
    two = {"models": {"sft": made["sft"].path, "average": made["average"].path}}
    tokens = {"tokens": made["tokens"].path}
    for stage, inputs in (
        (preferences_stage.STAGE, {"dialogs": made["dialogs"].path}),
        (best_stage.STAGE, {"reward": made["reward"].path, "prompts": made["dialogs"].path}),
    ):
        with pytest.raises(UserError, match=rf"{stage.name}: the server at engine.url serves one model, and 2 are asked"):
            made["round"].run(stage, tokens | two | inputs, "engine=server", node="x")
