"""`herd import-rows`: files in, artifacts that sft, reward and dpo take; lineage, the split, bad lines."""

import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.alignment import import_rows_stage
from herd.alignment.fine_tuning import read_dialogs
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import read_preferences
from herd.dialog.rows import read_jsonl, read_prompts
from herd.recipe.job import make_job
from herd.runs.stage import execute

COMMIT = "0123456789abcdef" * 2 + "01234567"


def dialog(i):
    return {"id": f"d{i}", "prompt": f"question {i % 20}", "completion": f"answer {i}"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def imported(tmp_path):
    def run(path, *overrides):
        config = make_job("import-rows", compose("import-rows", [f"source.path={path}", *overrides])).config
        return execute(import_rows_stage.STAGE, config, {}, tmp_path / "runs", "test")

    return run


def test_dialogs_are_what_sft_reads_and_know_their_line(tmp_path, imported):
    artifact = imported(write(tmp_path / "rows.jsonl", map(dialog, range(60))), "heldout_share=0.3")
    dialogs = read_dialogs(artifact)
    prompts = read_prompts(artifact / "heldout_prompts.jsonl")
    assert len(dialogs) == artifact.metrics["rows"] and len(prompts) == artifact.metrics["heldout_rows"]
    assert artifact.metrics["dropped_rows"] == sum(artifact.metrics["read"]["dropped"].values())
    assert len(dialogs) + len(prompts) == 60 and 0 < len(prompts) < 40
    assert not {d[0].content for d in dialogs} & {p.messages[0].content for p in prompts}  # a prompt has one side
    for _, row in read_jsonl(artifact / "dialogs.jsonl"):
        line = row["source"]["row"]
        assert row["source"] == {"file": "rows.jsonl", "row": line, "id": f"d{line - 1}"}
        assert row["messages"][1]["content"] == f"answer {line - 1}"
    assert prompts[0].reference.startswith("answer ")


def test_preferences_are_what_reward_and_dpo_read(tmp_path, imported):
    rows = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": "b", "strength": "clear"} for i in range(40)]
    rows[7]["rejected"] = "a7"
    artifact = imported(write(tmp_path / "p.jsonl", rows), "++format.grades.clear=better", "heldout_share=0.2", "malformed=drop")
    train, heldout = (read_preferences(artifact / name) for name in ("preferences.jsonl", "heldout.jsonl"))
    assert len(train) + len(heldout) == 39 and heldout
    assert artifact.metrics["read"] == {"kept": 39, "dropped": {"chosen_equals_rejected": 1}}
    assert {p.grade.value for p in train} == {"better"}
    for row in train:
        assert row.prompt == (Message(Role.USER, f"q{int(row.id.removeprefix('p.jsonl:')) - 1}"),)


def test_what_begins_with_one_question_has_one_side_whatever_its_kind(tmp_path, imported):
    """Preferences on the first answer and on a later one, and dialogs: no question is in training here and held out there."""
    first, later = ([{"role": "user", "content": f"q{i}"}] for i in range(30)), range(30)
    pairs, dialogs = [], []
    for i, asked in zip(later, first, strict=True):
        longer = [*asked, {"role": "assistant", "content": "a"}, {"role": "user", "content": f"and {i}?"}]
        pairs += [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in (asked, longer)]
        dialogs.append({"messages": [*longer, {"role": "assistant", "content": "b"}]})
    preferences = imported(write(tmp_path / "p.jsonl", pairs), "heldout_share=0.4")
    rows = imported(write(tmp_path / "d.jsonl", dialogs), "heldout_share=0.4")
    train, heldout = (
        {row.prompt[0].content for row in read_preferences(preferences / name)} for name in ("preferences.jsonl", "heldout.jsonl")
    )
    assert heldout and not train & heldout
    assert {d[0].content for d in read_dialogs(rows)} == train


def test_pairs_of_one_prompt_are_told_by_it(tmp_path, imported):
    pairs = [{"prompt": f"q{i // 2}", "chosen": f"a{i}", "rejected": "b"} for i in range(4)]
    pairs += [{"prompt": "q", "prompt_id": 7, "chosen": "a", "rejected": "b"}]
    rows = read_preferences(imported(write(tmp_path / "p.jsonl", pairs), "heldout_share=0") / "preferences.jsonl")
    keys = [row.prompt_key for row in rows]
    assert keys[0] == keys[1] != keys[2] == keys[3] and keys[4] == "7"


def test_formats_of_files_give_the_same_rows(tmp_path, imported):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{i}"}]} for i in range(3)]
    rows[1]["messages"] = [
        rows[1]["messages"][0],
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "1"}}}]},
    ]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    found = [read_dialogs(imported(tmp_path / name, "heldout_share=0")) for name in ("a.jsonl", "b.json", "c.parquet")]
    assert found[0] == found[1] == found[2] and len(found[0]) == 3
    (tmp_path / "runs").rename(tmp_path.parent / f"{tmp_path.name}-runs")
    assert len(read_dialogs(imported(tmp_path, "heldout_share=0"))) == 9  # the folder


def test_broken_json_at_line_50_000(tmp_path, imported):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(dialog(0)) + "\n"
    path.write_text(good * 999 + "\n" * 49_000 + '{"prompt": "q", \n' + good)
    with pytest.raises(UserError, match=r"rows\.jsonl, line 50000: not valid JSON \(.* at column 17\); mend or remove the line"):
        imported(path)
    assert list((tmp_path / "runs/store").glob(".partial*")) == []  # no half of 50,000 rows stays behind
    metrics = imported(path, "malformed=drop", "heldout_share=0").metrics
    assert metrics["read"] == {"kept": 1000, "dropped": {"malformed": 1}}
    assert "line 50000" in metrics["malformed"][0]


def test_what_is_refused(tmp_path, imported):
    for name, content, words in (
        ("a.jsonl", "", r"no row of .* is of use \(there is none\)"),
        ("b.jsonl", '{"prompt": "q", "completion": " "}\n', r"is of use \(empty_response 1\)"),
        ("c.jsonl", '{"messages": [{"role": "robot", "content": "x"}]}\n', "line 1, message 0: unknown role 'robot'"),
        ("d.json", '{"a": 1}', "must hold a list of rows"),
        ("e.parquet", "no table", "cannot be read as Parquet"),
        ("f.csv", "a,b", r"does not end in \.jsonl"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=words):
            imported(tmp_path / name)
    with pytest.raises(UserError, match="no file or folder"):
        imported(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"kind: no 'alpacca'.*alpaca"):
        imported(tmp_path / "a.jsonl", "kind=alpacca")


def test_the_hub_is_streamed_at_a_commit(imported, monkeypatch):
    def load_dataset(path, subset, split, streaming, revision):
        assert (path, subset, split, streaming, revision) == ("a/b", None, "train", True, COMMIT)
        return (dialog(i) | {"unset": None} for i in range(5))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    artifact = imported("a/b", "source.kind=hub", f"source.revision={COMMIT}", "heldout_share=0")
    rows = [row for _, row in read_jsonl(artifact / "dialogs.jsonl")]
    assert [row["source"]["row"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["source"]["file"] == f"a/b@{COMMIT[:12]}/train"


def test_without_the_extra_the_hub_says_what_to_install(imported, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"herd\[hub\]"):
        imported("a/b", "source.kind=hub", f"source.revision={COMMIT}")


def test_a_byte_order_mark_is_no_broken_line(tmp_path, imported):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(dialog(0)).encode() + b"\r\n")
    assert imported(tmp_path / "a.jsonl", "heldout_share=0").metrics["rows"] == 1


def test_what_was_dropped_is_said_with_its_reasons(tmp_path, imported, capsys):
    rows = [dialog(0), dialog(1) | {"completion": ""}, dialog(2) | {"completion": 7}]
    import_rows_stage.show(imported(write(tmp_path / "a.jsonl", rows), "malformed=drop", "heldout_share=0"))
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "prompt_completion: 1 rows, 0 held out, 2 dropped (empty_response 1, malformed 1)"
    assert "line 3, completion: `completion` must be text" in shown[1]
