import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.alignment.documentation import (
    Entry,
    EntryLimits,
    Parameter,
    call_values,
    make_prompt,
    make_prompts,
    positional_parameters,
    read_entries,
)
from herd.config.errors import UserError
from herd.dialog.rows import Counted

ENTRY = Entry("e1", "norm", "(x, ord=None, *, axis=0)", "Return the norm of x.")


def rng():
    return np.random.default_rng(0)


def test_entries_by_split_with_reasons(documents):
    counted = Counted()
    splits = read_entries(documents / "entries.parquet", EntryLimits(), counted)
    assert {k: len(v) for k, v in splits.items()} == {"train": 60, "heldout": 20}
    assert counted.to_dict() == {"kept": 80, "dropped": {"name": 1, "signature_does_not_parse": 1, "summary_length": 1}}
    assert splits["train"][0].name == "return_rows_0"  # last part of the qualified name


def test_name_before_the_signature_is_not_said_twice(tmp_path, documents):
    rows = pq.read_table(documents / "entries.parquet").to_pylist()[:1]
    rows[0]["signature"] = "return_rows_0(x,\n   y)"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    assert read_entries(tmp_path / "e.parquet", EntryLimits(), Counted())["train"][0].signature == "(x, y)"


def test_heldout_entry_that_training_has_too_is_dropped(tmp_path, documents):
    rows = pq.read_table(documents / "entries.parquet").to_pylist()[:2]
    rows[1] |= {"split": "heldout", "name": "other." + rows[0]["name"], "summary": rows[0]["summary"]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    counted = Counted()
    assert read_entries(tmp_path / "e.parquet", EntryLimits(), counted)["heldout"] == []
    assert counted.dropped == {"heldout_entry_in_train": 1}


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "e.parquet").write_text("hello")
    with pytest.raises(UserError, match="not a table of entries"):
        read_entries(tmp_path / "e.parquet", EntryLimits(), Counted())


@pytest.mark.parametrize(
    ("signature", "parameters"),
    [
        ("(x, ord=None, *, axis=0)", [("x", True), ("ord", False)]),
        ("(self, a, /, b=1, *args, **kw)", [("a", True), ("b", False)]),
        ("()", []),
        ("", None),
        ("(x, <default>)", None),
        ("(x): import os #", None),
    ],
)
def test_positional_parameters(signature, parameters):
    wanted = None if parameters is None else [Parameter(*p) for p in parameters]
    assert positional_parameters(signature) == wanted


def test_a_signature_cannot_smuggle_code():
    # It would parse as a statement of its own; parsed or not, nothing is ever executed.
    assert positional_parameters("(x): pass\nimport os\ndef g()") is None


def test_calls_give_every_required_value():
    many = Entry("e", "f", "(a, b, c, d)", "Do it.")
    assert call_values(many, rng()) is None
    assert call_values(Entry("e", "f", "(*args)", "Do."), rng()) is None
    for seed in range(20):
        values = call_values(Entry("e", "f", "(a, b, c=1, d=2)", "Do it."), np.random.default_rng(seed))
        assert [name for name, _ in values] in (["a", "b"], ["a", "b", "c"])


@pytest.mark.parametrize("task", ["what", "signature", "call"])
def test_prompt_holds_what_the_answer_needs(task):
    prompt = make_prompt(ENTRY, task, rng())
    text = prompt.messages[0].content
    assert "norm(x, ord=None, *, axis=0)\nReturn the norm of x." in text
    if task == "call":
        arguments = prompt.reference.removeprefix("norm(").removesuffix(")")
        assert arguments
        assert all(value.strip(" [])") in text for value in arguments.split(","))
    else:
        assert prompt.reference in text


def test_tasks_take_turns_and_an_impossible_one_is_passed_over():
    nothing = Entry("e2", "now", "()", "Return the current time.")
    prompts = make_prompts([ENTRY, ENTRY, nothing], ["what", "signature", "call"], rng())
    assert [p.task for p in prompts] == ["what", "signature", "what"]
