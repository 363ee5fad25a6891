"""Pairs go out to people, their verdicts come back: through the stage as a person would use it."""

import csv
import json
from pathlib import Path

import pytest

from herd.alignment import dialogs_stage, preferences_stage
from herd.alignment.verdicts import Verdict, agreement, read_verdicts, resolve
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.dialog.preferences import Grade, read_preferences
from herd.dialog.rows import read_jsonl
from herd.recipe.job import make_job
from herd.runs.stage import Artifact, execute


def run(stage, inputs, root: Path, *overrides: str) -> Artifact:
    return execute(stage, make_job(stage.name, compose(stage.name, list(overrides))).config, inputs, root, "test")


@pytest.fixture
def annotate(documents, tmp_path):
    """Runs `herd preferences` with people; its folder of exchange."""
    sizes = ("seed_dialogs=10", "train_prompts=20", "heldout_prompts=10")
    dialogs = run(dialogs_stage.STAGE, {"documents": str(documents)}, tmp_path / "runs", *sizes).path

    def stage(*overrides: str) -> Artifact:
        where = f"annotation.folder={tmp_path / 'people'}"
        few = ("prompts=12", "heldout_prompts=6")
        return run(preferences_stage.STAGE, {"dialogs": str(dialogs)}, tmp_path / "runs", *few, where, *overrides)

    return stage, tmp_path / "people"


def fill_in(folder: Path, name: str, verdict) -> list[dict[str, str]]:
    """A person's spreadsheet: `verdict(number, row)` -> better, grade, edited."""
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["better"], row["grade"], row["edited"] = verdict(number, row)
    with (folder / f"verdicts-{name}.csv").open("w", encoding="utf-8-sig", newline="") as file:  # as spreadsheets save it
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_the_stage_waits_and_goes_on_with_the_verdicts(annotate, monkeypatch) -> None:
    stage, folder = annotate
    with pytest.raises(UserError, match=r"^waiting for verdicts: 0 of \d+ pairs have one. Judge .*pairs.csv .*verdicts-NAME.csv"):
        stage()
    key = json.loads((folder / "key.json").read_text())["splits"]
    writers = {two[0]["model"] == "reference" for split in key.values() for two in split.values()}
    assert writers == {True, False}  # the order of the answers says nothing
    public = (folder / "pairs.jsonl").read_text() + (folder / "pairs.csv").read_text().partition("\n")[0]
    assert not any(word in public for word in ('"model"', "reference+"))
    monkeypatch.setattr(preferences_stage, "flawed", None)  # the pairs that went out are judged, no new ones made
    rows = fill_in(folder, "anna", lambda i, row: ("a", "better", "An edit.") if i else ("tie", "", ""))
    fill_in(folder, "ben", lambda i, row: ("b" if i == 1 else "a", "Slightly_Better ", "") if i != 2 else ("", "", ""))
    made = stage()
    metrics = made.metrics
    assert metrics["annotators"] == {"anna": len(rows), "ben": len(rows) - 1}
    dropped = {
        r: metrics["train"]["dropped"].get(r, 0) + metrics["heldout"]["dropped"].get(r, 0) for r in ("annotators_disagree",)
    }
    assert dropped["annotators_disagree"] == 2  # the tie against a, and a against b
    judged = len(rows) - 1
    assert metrics["agreement"]["pairs_with_several"] == judged and metrics["agreement"]["agree"] == (judged - 2) / judged
    assert metrics["agreement"]["same_grade"] == 0.0
    kept = [row for file in ("preferences", "heldout") for _, row in read_jsonl(made / f"{file}.jsonl")]
    assert len(kept) == len(rows) - 2
    texts = {row["a"]: row for row in rows}
    alone = rows[2]["id"].rpartition("-")[0]
    for row in kept:
        chosen = texts[row["chosen"][0]["content"]]
        assert row["rejected"][0]["content"] == chosen["b"] and row["edited"][0]["content"] == "An edit."
        assert row["models"]["edited"] == "anna" and row["annotators"]["anna"] == {"grade": "better", "edited": True}
        assert row["grade"] == ("better" if row["prompt_id"] == alone else "slightly_better")  # the weaker of two
    assert read_preferences(made / "preferences.jsonl")
    assert stage().path == made.path  # finished: nothing is made again
    fill_in(folder, "ben", lambda i, row: ("b", "better", ""))
    with pytest.raises(UserError, match=r"^preferences: no pair is left \(annotators_disagree \d+\); add files of verdicts"):
        stage()
    fill_in(folder, "ben", lambda i, row: ("a" if i == 3 else "b", "better", ""))
    assert stage().path != made.path  # other verdicts, another result


def test_gaps_are_counted_where_they_are_allowed_and_other_pairs_refused(annotate) -> None:
    stage, folder = annotate
    with pytest.raises(UserError, match="waiting"):
        stage()
    rows = fill_in(folder, "anna", lambda i, row: ("b", "better", "") if i % 2 else ("", "", ""))
    half = len(rows) // 2
    with pytest.raises(UserError, match=rf"{half} of {len(rows)} pairs have one"):
        stage()
    metrics = stage("annotation.least_share=0.4").metrics
    missing = sum(metrics[split]["dropped"]["no_verdict"] for split in ("train", "heldout"))
    assert missing == len(rows) - half and metrics["pairs"] + metrics["heldout_pairs"] == half
    with pytest.raises(UserError, match="holds pairs of other models, prompts or settings"):
        stage("seed=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,better\np1,a\n", "has no column 'grade'"),
        ("id,better,grade\np1,a,beter\n", "line 2: `grade` is 'beter'; .*Did you mean 'better'"),
        ("id,better,grade\np1,left,better\n", "line 2: `better` is 'left'; write a, b or tie"),
        (
            'id,better,grade,edited\np1,a,better,"two\nlines"\npair-7,a,better,\n',
            "line 4: no pair has the id 'pair-7'. Did you mean",
        ),
        ("id,better,grade\np1,a,better\np1,b,better\n", "line 3: 'p1' comes a second time"),
        ("id,better,grade,edited\np1,tie,,better so\n", "line 2: a tie has no better answer to edit"),
        ('id,better,grade\np1,a,"better\n', "line 2: no CSV"),
    ],
)
def test_a_wrong_verdict_is_named_by_its_line(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "verdicts-x.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_verdicts(path, "x", ["p1", "pair-17"])


def test_jsonl_and_what_several_say() -> None:
    a = Verdict("x", "a", Grade.BETTER, None)
    weaker, edit = Verdict("y", "a", Grade.MARGINALLY_BETTER, None), Verdict("z", "a", Grade.SIGNIFICANTLY_BETTER, "so")
    assert resolve([a, weaker, edit]) == Verdict("z", "a", Grade.MARGINALLY_BETTER, "so")
    b, tie = Verdict("y", "b", Grade.BETTER, None), Verdict("y", "tie", None, None)
    assert resolve([a, b]) == resolve([a, tie]) == "annotators_disagree"
    assert resolve([tie, tie]) == "tie"
    # 3 of 4 couples agree; shares of a, b by chance 5/8 and 3/8: (0.75 - 34/64) / (1 - 34/64) by hand
    found = agreement([[a, a], [a, a], [b, b], [a, b], [a]])
    assert found["agree"] == 0.75 and found["pairs_with_several"] == 4
    assert found["chance_corrected"] == pytest.approx((0.75 - 34 / 64) / (30 / 64))
    assert agreement([[a]]) == {"pairs_with_several": 0}
