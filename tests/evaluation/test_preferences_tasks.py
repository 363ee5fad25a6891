"""Reward accuracy and win rate, judged by reward functions whose verdicts are known."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import render
from herd.dialog.rows import Prompt, write_jsonl
from herd.evaluation.bench import Bench
from herd.evaluation.rewards import pair_rewards
from herd.evaluation.scoring import LanguageModel
from herd.evaluation.tasks import reward_accuracy, win_rate
from herd.evaluation.tasks.reward_accuracy import RewardAccuracy, RewardAccuracyConfig
from herd.evaluation.tasks.win_rate import WinRate, WinRateConfig
from herd.generation.chat import Answer
from herd.generation.engines.config import EngineConfig
from herd.model.heads import RewardModel


def ask(text: str) -> tuple[Message, ...]:
    return (Message(Role.USER, text),)


def say(text: str) -> tuple[Message, ...]:
    return (Message(Role.ASSISTANT, text),)


def by_length(
    model: object, tokenizer: Tokenizer, prompts: Sequence, firsts: Sequence, seconds: Sequence, dialect: str = "meta"
) -> tuple:
    """A judge that likes long answers."""
    scores = [[len(a[-1].content), len(b[-1].content)] for a, b in zip(firsts, seconds, strict=True)]
    return np.arange(len(prompts)), np.array(scores, dtype=float)


@pytest.fixture
def preferences(bench: Bench, tmp_path) -> Bench:
    """20 pairs: in 15 the chosen answer is longer, in 3 shorter, in 2 of equal length."""
    rows = []
    for i in range(20):
        chosen = "a long answer" if i < 15 else ("short" if i < 18 else "four")
        rejected = "brief" if i < 15 else ("much longer" if i < 18 else "also")
        grade = Grade.BETTER if i % 2 else Grade.SIGNIFICANTLY_BETTER
        rows.append(Preference(f"p{i}", f"q{i}", ask(f"question {i}"), say(chosen), say(rejected), grade))
    write_jsonl(tmp_path / "heldout.jsonl", (row.to_dict() for row in rows))
    return replace(bench, preferences={"round-1": replace(bench.documents, path=tmp_path)})


def test_rewards_are_read_at_the_end_of_each_answer(make_lm: Callable[..., LanguageModel], tokenizer: Tokenizer) -> None:
    model = RewardModel(make_lm().model).eval()
    prompts = [ask("what does norm do?"), ask("x " * 300), ask("and sort?")]
    firsts, seconds = [say("it measures"), say("a"), say("it sorts the table")], [say("no"), say("b"), say("")]
    kept, scores = pair_rewards(model, tokenizer, prompts, firsts, seconds)
    assert kept.tolist() == [0, 2]  # the second prompt is longer than the model
    for k, row in zip(kept, scores, strict=True):
        for answer, found in zip((firsts[k], seconds[k]), row, strict=True):
            tokens = torch.from_numpy(render([*prompts[k], *answer], tokenizer).tokens)[None]
            with torch.no_grad():
                assert found == pytest.approx(float(model(tokens)[0, -1]), abs=1e-5)


def test_reward_accuracy_counts_strict_wins(preferences: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_accuracy, "pair_rewards", by_length)
    task = RewardAccuracy(RewardAccuracyConfig(), preferences)
    task.reward_model("judge", object())  # type: ignore[arg-type]
    metrics = task.finish().results["judge"]["reward_accuracy_round-1"]
    assert metrics["acc,none"] == 15 / 20  # a tie is no win
    low, high = metrics["acc_interval,none"]
    assert 0.5 < low < 0.75 < high < 0.9
    assert metrics["n"] == metrics["prompts"] == 20
    # The judge is length itself, but that length gets half of each of the two ties.
    assert (metrics["length_acc,none"], metrics["length_prefers"]) == (16 / 20, "longer")
    assert metrics["over_length,none"] == pytest.approx(-1 / 20)
    low, high = metrics["over_length_interval,none"]
    assert low <= -1 / 20 <= high <= 0
    assert metrics["like_length"]["pairs"] == 2 and metrics["like_length"]["share"] == 0.0
    assert metrics["grades"]["better"]["n"] == 10
    swapped = RewardAccuracy(RewardAccuracyConfig(), preferences)
    monkeypatch.setattr(reward_accuracy, "pair_rewards", lambda m, t, p, a, b, dialect: by_length(m, t, p, b, a))
    swapped.reward_model("judge", object())  # type: ignore[arg-type]
    assert swapped.finish().results["judge"]["reward_accuracy_round-1"]["acc,none"] == 3 / 20


@pytest.fixture
def prompts(bench: Bench, tmp_path) -> Bench:
    rows = [Prompt(f"p{i}", f"e{i}", "what", ask(f"what does f{i} do?"), "it does") for i in range(12)]
    write_jsonl(tmp_path / "heldout_prompts.jsonl", (row.to_dict() for row in rows))
    return replace(bench, dialogs=replace(bench.documents, path=tmp_path), labels=("dpo", "sft"))


def test_win_rate_counts_ties_half(
    prompts: Bench, make_lm: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"dpo": ["longer answer"] * 7 + ["same"] * 3 + [""] * 2, "sft": ["short"] * 7 + ["same"] * 3 + ["more"] * 2}

    def answers(model: object, tokenizer: Tokenizer, asked: Sequence, config: object, *rest: object) -> list:
        assert config.temperature == 0.0  # type: ignore[attr-defined]
        return [[Answer(text, (1, 2), True, 0.0)] for text in texts[current]]

    monkeypatch.setattr(win_rate, "sample_answers", answers)
    monkeypatch.setattr(win_rate, "pair_rewards", by_length)
    task = WinRate(WinRateConfig(pairs=[["dpo", "sft", "judge"]], first_prompt=0), prompts)
    for current in ("dpo", "sft"):
        task.language_model(make_lm(current))
    task.reward_model("another", object())  # type: ignore[arg-type]
    task.reward_model("judge", object())  # type: ignore[arg-type]
    result = task.finish()
    metrics = result.results["dpo"]["win_rate_over_sft"]
    assert (metrics["wins"], metrics["losses"], metrics["ties"], metrics["n"]) == (7, 2, 3, 12)
    assert metrics["win_rate,none"] == pytest.approx((7 + 1.5) / 12)
    assert metrics["win_rate_interval,none"][0] < metrics["win_rate,none"] < metrics["win_rate_interval,none"][1]
    assert len(result.samples["win_rate"]) == 12
    assert result.comparisons[0]["win_rate"] == metrics["win_rate,none"]


def test_answers_of_an_evaluation_that_was_killed_are_found_again(
    prompts: Bench, make_lm: Callable[..., LanguageModel], capsys: pytest.CaptureFixture[str]
) -> None:
    config = WinRateConfig(pairs=[["dpo", "sft", "judge"]], first_prompt=0, max_new_tokens=4)
    first, again = WinRate(config, prompts), WinRate(config, prompts)
    for task, labels in ((first, ("dpo",)), (again, ("dpo", "sft"))):  # killed between its models
        for label in labels:
            task.language_model(make_lm(label))
    assert again.answers["dpo"] == first.answers["dpo"] and len(again.answers["sft"]) == 12
    told = capsys.readouterr().err
    assert told == "  sampling (dpo): the answers to 12 of 12 prompts are there from before\n"


def test_prompts_that_chose_a_checkpoint_do_not_score_it(prompts: Bench) -> None:
    assert prompts.dialogs is not None
    settings = {"config": {"first_prompt": 0, "prompts": 10}, "input_addresses": {"prompts": prompts.dialogs.address}}
    chosen = {"stage": "best", "address": "b", "node": "round-1/best", "inputs": {}} | settings
    bench = replace(prompts, models={"dpo": replace(prompts.dialogs, manifest=chosen)})
    pairs = [["dpo", "sft", "judge"]]
    with pytest.raises(UserError, match=r"prompts 9 to 11, and 1 of them .*`herd best` \(round-1/best, which dpo comes from\)"):
        WinRate(WinRateConfig(pairs=pairs, first_prompt=9), bench)
    assert len(WinRate(WinRateConfig(pairs=pairs, first_prompt=10), bench).prompts) == 2


def test_the_grader_gives_its_own_verdict_on_the_same_answers(
    prompts: Bench, make_lm: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge likes long answers; the grader likes the reference ("it does") and halves what was cut off."""
    texts = {"dpo": ["it does"] * 6 + ["something else entirely here"] * 6, "sft": ["it does"] * 8 + ["it does not"] * 4}
    monkeypatch.setattr(
        win_rate,
        "sample_answers",
        lambda *args: [[Answer(text, (1, 2), current == "sft" or i > 0, 0.0)] for i, text in enumerate(texts[current])],
    )
    monkeypatch.setattr(win_rate, "pair_rewards", by_length)
    task = WinRate(WinRateConfig(pairs=[["dpo", "sft", "judge"]], first_prompt=0), prompts)
    for current in ("dpo", "sft"):
        task.language_model(make_lm(current))
    task.reward_model("judge", object())  # type: ignore[arg-type]
    result = task.finish()
    metrics, [compared, means] = result.results["dpo"]["win_rate_over_sft"], result.comparisons
    assert metrics["win_rate,none"] == (6 + 3) / 12
    assert metrics["grader_win_rate,none"] == compared["grader_win_rate"] == 2.5 / 12  # five ties; the cut answer loses
    assert metrics["grader_ties"] == compared["grader_ties"] == 5
    low, high = compared["grader_interval"]
    assert low < 2.5 / 12 < high
    grades = np.array([row["grades"] for row in result.samples["win_rate"]])
    assert grades[0].tolist() == [task.grader.score("what", "it does", "it does", finished=False), grades[1, 1]]
    assert compared["grades"] == pytest.approx(grades.mean(axis=0).tolist())
    assert means["grades"] == pytest.approx(compared["grades"])
    assert means["grade_difference"] == pytest.approx((grades[:, 0] - grades[:, 1]).mean())
    low, high = means["grade_interval"]
    assert low < means["grade_difference"] < high
    lengths = np.array([[len(a), len(b)] for a, b in zip(texts["dpo"], texts["sft"], strict=True)], float)
    assert means["rewards"] == lengths.mean(axis=0).tolist() and means["task"] == "reward_of_answers"
    low, high = means["interval"]
    assert low < means["difference"] == (lengths[:, 0] - lengths[:, 1]).mean() < high


def test_an_average_meets_the_best_of_its_members(
    prompts: Bench, make_lm: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge likes long answers: of the two members the longer one is met, on the prompts from the third on."""
    texts = {"1/mean": "four", "1/a": "short", "1/b": "the longest", "2/mean": "x", "2/a": "y", "2/b": ""}
    asked: list[int] = []

    def answers(model: object, tokenizer: Tokenizer, given: Sequence, *rest: object) -> list:
        asked.append(len(given))
        return [[Answer(texts[current], (1, 2), True, 0.0)] for _ in given]

    monkeypatch.setattr(win_rate, "sample_answers", answers)
    monkeypatch.setattr(win_rate, "pair_rewards", by_length)
    config = WinRateConfig(averages=[["*/mean", "*/a", "*/b", "*/judge"]], first_prompt=2)
    task = WinRate(config, replace(prompts, labels=tuple(texts)))
    for current in texts:
        task.language_model(make_lm(current))
    task.reward_model("1/judge", object())  # type: ignore[arg-type]
    task.reward_model("2/judge", object())  # type: ignore[arg-type]
    one, two = task.finish().comparisons
    assert set(asked) == {10} and one["n"] == 10
    assert one["models"] == ["1/mean", "1/b"] and one["best_of"] == ["1/a", "1/b"] and one["judge"] == "1/judge"
    assert one["difference"] == 4 - 11 and one["interval"] == [-7, -7]
    assert two["models"] == ["2/mean", "2/a"] and two["difference"] == 0
    assert task.result.results["1/mean"]["reward_over_best_member"]["opponent"] == "1/b"
    with pytest.raises(UserError, match=r"averages: no model '3/\*' among the inputs"):
        WinRateConfig(averages=[["3/*", "a", "b", "judge"]]).over(tuple(texts))


def test_a_model_against_itself_ties_everywhere(prompts: Bench, make_lm: Callable[..., LanguageModel]) -> None:
    """The real sampler and a real reward model: equal weights answer alike, and alike is a tie, not a win."""
    task = WinRate(WinRateConfig(pairs=[["dpo", "sft", "judge"]], first_prompt=0, prompts=5, max_new_tokens=6), prompts)
    task.language_model(make_lm("dpo", seed=4))
    task.language_model(make_lm("sft", seed=4))
    with torch.inference_mode():
        task.reward_model("judge", RewardModel(make_lm().model))
    metrics = task.finish().results["dpo"]["win_rate_over_sft"]
    assert metrics["ties"] == metrics["n"] == 5
    assert metrics["win_rate,none"] == 0.5


def test_each_model_answers_and_judges_in_the_dialect_that_it_was_trained_in(
    prompts: Bench, preferences: Bench, make_lm: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, str] = {}

    def answers(model: object, tokenizer: Tokenizer, given: Sequence, *rest: object) -> list:
        asked[current] = str(rest[-1])
        return [[Answer(current, (1, 2), True, 0.0)] for _ in given]

    def judged(*args: object, dialect: str) -> tuple:
        asked[judge] = dialect
        return by_length(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(win_rate, "sample_answers", answers)
    for task in (win_rate, reward_accuracy):
        monkeypatch.setattr(task, "pair_rewards", judged)
    bench = replace(prompts, dialects={"dpo": "hf", "sft": "torchtune", "judge": "meta_tag"}, preferences=preferences.preferences)
    wins, accuracy = (
        WinRate(WinRateConfig(pairs=[["dpo", "sft", "judge"]], first_prompt=0), bench),
        RewardAccuracy(RewardAccuracyConfig(), bench),
    )
    for current in ("dpo", "sft"):
        wins.language_model(make_lm(current))
    judge = "judge"
    wins.reward_model(judge, object())  # type: ignore[arg-type]
    assert asked == {"dpo": "hf", "sft": "torchtune", "judge": "meta_tag"}
    judge = "unknown"
    accuracy.reward_model(judge, object())  # type: ignore[arg-type]
    assert asked["unknown"] == "meta"


def test_rewards_are_of_the_dialect_asked_for(make_lm: Callable[..., LanguageModel], tokenizer: Tokenizer) -> None:
    model = RewardModel(make_lm().model).eval()
    asked = ([ask("what does norm do?")], [say(" it measures ")], [say("no")])
    for dialect in ("meta", "hf"):
        _, scores = pair_rewards(model, tokenizer, *asked, dialect=dialect)
        tokens = torch.from_numpy(render([*asked[0][0], *asked[1][0]], tokenizer, dialect=dialect).tokens)[None]
        with torch.no_grad():
            assert scores[0, 0] == pytest.approx(float(model(tokens)[0, -1]), abs=1e-5)


def test_missing_inputs_are_said(bench: Bench) -> None:
    assert "preference pairs" in str(RewardAccuracy(RewardAccuracyConfig(), bench).finish().skipped)
    assert "no pairs" in str(WinRate(WinRateConfig(), bench).finish().skipped)
    with pytest.raises(UserError, match=r"no model 'dop'.*Did you mean 'dpo'"):
        WinRate(WinRateConfig(pairs=[["dop", "sft", "rm"]]), replace(bench, labels=("dpo", "sft")))
    with pytest.raises(UserError, match="three labels"):
        WinRateConfig(pairs=[["dpo", "sft"]])


def test_answers_may_come_from_a_server_of_each_model(
    prompts: Bench, make_lm: Callable[..., LanguageModel], tmp_path: Path
) -> None:
    """A stand-in for vLLM is started for each model in turn; what drew the answers is noted."""
    pytest.importorskip("httpx", reason="needs the extra `serve`")
    stub = Path(__file__).parents[1] / "generation" / "engines" / "vllm_stub.py"
    command = [sys.executable, str(stub), "{port}", "{name}"]
    engine = EngineConfig(kind="server", command=command, checked_prompts=0, start_seconds=30)
    models = {label: replace(prompts.documents, path=tmp_path) for label in ("dpo", "sft")}
    (tmp_path / "model").mkdir()
    config = WinRateConfig(pairs=[["dpo", "sft", "judge"]], first_prompt=0, prompts=2, max_new_tokens=3, engine=engine)
    task = WinRate(config, replace(prompts, models=models))
    for label in ("dpo", "sft"):
        task.language_model(make_lm(label))
    drawn = {label: [answer.tokens for answer in of.values()] for label, of in task.answers.items()}
    assert drawn["dpo"] == drawn["sft"] and all(tokens[1] == 40 for tokens in drawn["dpo"])
    told = {"kind": "server", "software": "vllm", "version": "0.11.0"}
    assert task.result.notes == {f"{label}: engine": told | {"model": label} for label in ("dpo", "sft")}
    running = replace(config, engine=EngineConfig(kind="server", url="http://127.0.0.1:8000"))
    with pytest.raises(UserError, match=r"evaluate.win_rate: the server at engine.url serves one model, and 2 are asked"):
        WinRate(running, replace(prompts, models=models))
