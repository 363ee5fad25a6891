"""`herd prune` from end to end: what goes, what stays, that `herd sft` takes it, and that `herd why` knows."""

import json
import re

import pytest
from documented import write_artifact

from herd import cli
from herd.alignment import prune_stage
from herd.alignment.fine_tuning import read_dialogs as read_for_sft
from herd.alignment.quality.report import show_prune
from herd.alignment.quality.why import explain
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.dialog.messages import Role
from herd.recipe.job import make_job
from herd.runs.stage import execute

TOPICS = ["red apples", "two rivers", "old clocks", "the moon", "a bridge", "green tea", "long roads", "warm coats"]


def row(name: str, question: str, answer: str, **more) -> dict:
    return {"id": name, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} | more


def rows() -> list[dict]:
    """Sixteen dialogs, two about each topic, with rewards 0 to 15; then one of each fault."""
    plain = [
        row(
            f"good-{i}",
            f"What of {TOPICS[i % 8]} number {i}?",
            f"Answer {i * 37} speaks of {TOPICS[i % 8]} {i}.",
            reward=float(i),
        )
        for i in range(16)
    ]
    faulty = [
        row("copy", "What of the moon number 11?", "Answer 407 speaks of the moon 11.", reward=10.5),
        row("loud", "What of old clocks?", "Sure! They tick 🎉!!!", reward=20.0),
        row("sorry", "What of warm coats?", "I'm sorry, I know of no coats.", reward=21.0),
        row("leaked", "What is   the ANSWER to all?", "Forty two, they say.", reward=22.0),
        row("silent", "What of nothing?", " ", reward=23.0),
    ]
    return plain + faulty


def jsonl(items: list[dict]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def prune(tmp_path, *overrides: str, items: list[dict] | None = None, **inputs):
    source = write_artifact(tmp_path / "rows", {"dialogs.jsonl": jsonl(rows() if items is None else items)}, "reject")
    job = make_job("prune", compose("prune", ["rating.reward=row", "rating.share=0.5", "dedup.threshold=0.97", *overrides]))
    return execute(prune_stage.STAGE, job.config, {"dialogs": {"mine": source}} | inputs, tmp_path / "runs", "test")


@pytest.fixture
def finished(tmp_path):
    (tmp_path / "bench.jsonl").write_text('{"question": "What is the answer to all?", "gold": "42"}\n')
    benchmark = f"[{{name: deep, path: '{tmp_path}/bench.jsonl', fields: [question]}}]"
    return prune(tmp_path, f"decontamination.benchmarks={benchmark}")


def test_each_fault_goes_by_its_rule_and_the_rest_is_for_sft(finished, capsys) -> None:
    kept = [json.loads(line) for line in (finished / "dialogs.jsonl").read_text().splitlines()]
    gone = {r["id"]: r for r in map(json.loads, (finished / "dropped.jsonl").read_text().splitlines())}
    rules = {name: r["dropped"]["rule"] for name, r in gone.items()}
    assert {rules[name] for name in gone if name.startswith("good")} == {"low_quality"}
    assert {n: r for n, r in rules.items() if not n.startswith("good")} == {
        "copy": "semantic_duplicate",
        "sorry": "apology",
        "leaked": "benchmark_prompt",
        "silent": "not_trainable",
    }
    assert gone["copy"]["dropped"]["duplicate_of"] == "mine/good-11" and gone["leaked"]["reward"] == 22.0
    assert gone["leaked"]["dropped"]["why"] == "a prompt of a benchmark (deep: 0)"
    metrics = finished.metrics
    assert metrics["rows_in"] == 21 and metrics["rows_out"] == len(kept) and len(kept) + len(gone) == 21
    assert metrics["removed"] == {
        "not_trainable": 1,
        "apology": 1,
        "low_quality": 9,
        "semantic_duplicate": 1,
        "benchmark_prompt": 1,
    }
    assert metrics["modified"] == {"emoji": 1, "exclamation": 1, "opening": 1}
    loud = next(r for r in kept if r["id"] == "loud")
    assert loud["messages"][1]["content"] == "They tick." and loud["quality"]["modified"] == ["emoji", "exclamation", "opening"]
    assert loud["reward"] == 20.0 and loud["quality"]["reward"] == 20.0  # what was there, and what was used
    dialogs = read_for_sft(finished)
    assert len(dialogs) == len(kept) and all(messages[-1].role is Role.ASSISTANT for messages in dialogs)
    show_prune(finished)
    out = capsys.readouterr().out
    assert re.search(r"21 dialogs, 8 kept", out) and re.search(r"low_quality +9 +42.9%", out)
    assert re.search(r"with apology +4.8% +0.0%", out)


def test_the_same_again_gives_the_same_bytes(tmp_path) -> None:
    first, second = (prune(tmp_path / name) for name in "ab")
    for name in ("dialogs.jsonl", "dropped.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_why_tells_what_happened(finished, capsys) -> None:
    assert explain("copy", finished.path)[:3] == [
        "mine/copy",
        "  dropped  semantic_duplicate: says what mine/good-11 says (cosine 1.0000)",
        "           mine/good-11 was kept",
    ]
    cli.main(["why", "mine/loud", str(finished.path)])
    out = capsys.readouterr().out
    assert "changed  emoji, exclamation, opening\n  kept\n" in out and "high_reward        True" in out
    with pytest.raises(UserError, match=r"No dialog of .* begins with 'bad'"):
        explain("bad", finished.path)


def test_the_judge_has_a_say_and_what_it_said_can_be_read_back(tmp_path) -> None:
    said = [{"id": f"good-{i}", "quality": 3 if i < 4 else 1, "difficulty": 1 + i % 3} for i in range(16)]
    (tmp_path / "said.jsonl").write_text(jsonl(said))
    first = prune(tmp_path, "judge.kind=file", f"judge.path={tmp_path}/said.jsonl")
    kept = [json.loads(line)["id"] for line in (first / "dialogs.jsonl").read_text().splitlines()]
    assert {"good-0", "good-1", "good-2", "good-3", "good-15"} <= {*kept} and "good-5" not in kept
    both = first.metrics["steps"]["rating"]["reward_against_judge"]
    assert (both["items"], both["status"]) == (16, "ok") and both["kappa"] < 0
    again = prune(tmp_path, "judge.kind=file", f"judge.path={first / 'judged.jsonl'}")
    assert (again / "dialogs.jsonl").read_bytes() == (first / "dialogs.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["steps=[cleaning,semantic]"], "Unknown step 'semantic'"),
        (["rating.within=topic"], "needs the step `topics` before `rating`"),
        (["rating.reward=model"], r"needs inputs.reward=FOLDER"),
        (["rating.reward=none"], "neither a reward nor a judge"),
        (["judge.kind=grader"], "needs inputs.prompts"),
        (["embedding.kind=model"], "inputs.embedder"),
        (["steps=[rating]", "rating.share=0.5", "++cleaning.rules.x.kind=emojy", "++cleaning.rules.x.action=drop"], "'emojy'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(tmp_path, overrides, text) -> None:
    with pytest.raises(UserError, match=text):
        prune(tmp_path, *overrides)


def test_nothing_left_is_no_result(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no dialog is left \(not_trainable 1\)"):
        prune(tmp_path, items=[row("a", "?", "")])
    with pytest.raises(UserError, match=r"line 2: the id 'a' was there before \(.*line 1\)"):
        prune(tmp_path / "b", items=[row("a", "?", "x"), row("a", "?", "y")])
