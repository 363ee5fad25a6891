"""A model says in which dialect it was trained, and rows of another are refused."""

from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.dialog.trained_in import of_group, require_dialect, require_tokenizer, tokenizer_of, trained_in
from herd.runs.atomic import write_json
from herd.runs.stage import Artifact


def made_by(stage: str, dialect: str | None) -> Artifact:
    return Artifact(Path(stage), {"stage": stage, "config": {} if dialect is None else {"dialect": dialect}})


def test_models_of_dialogs_know_their_dialect_and_others_have_none():
    assert [trained_in(made_by(stage, "hf")) for stage in ("sft", "dpo", "reward", "average")] == ["hf"] * 4
    assert trained_in(made_by("pretrain", None)) is None
    assert trained_in(Artifact(Path("x"), {"stage": "sft"})) is None  # a manifest without its configuration
    assert trained_in(made_by("prune", "hf")) is None  # rows are text: they are of no dialect


def test_another_dialect_is_refused_with_the_remedy():
    models = {"base": made_by("pretrain", None), "reward": None, **of_group("models", {"a": made_by("dpo", "hf")})}
    require_dialect("reject", "hf", models)
    with pytest.raises(UserError) as error:
        require_dialect("reject", "meta", models)
    assert str(error.value) == (
        "reject: inputs.models.a was trained in dialect hf (herd dpo), and rows are rendered in meta here: "
        "set dialect=hf, or give a model trained in meta."
    )


def tokens_of(folder: Path, digest: str) -> Artifact:
    outputs = {"tokenizer/tokenizer.json": {"sha256": digest}}
    write_json(folder / "manifest.json", {"stage": "tokenize", "outputs": outputs, "inputs": {}, "metrics": {}})
    return Artifact.open(folder)


def test_the_tokenizer_is_found_through_the_stages_that_made_a_model(tmp_path):
    tokens, again, other = (tokens_of(tmp_path / name, digest) for name, digest in (("one", "a"), ("again", "a"), ("other", "b")))
    sft = Artifact(tmp_path / "sft", {"stage": "sft", "inputs": {"tokens": "one", "base": "pretrain"}})
    write_json(tmp_path / "sft" / "manifest.json", sft.manifest | {"metrics": {}})
    mean = Artifact(tmp_path / "mean", {"stage": "average", "inputs": {"models": {"a": "sft"}}})
    assert [tokenizer_of(made) for made in (tokens, sft, mean, made_by("pretrain", None))] == ["a", "a", "a", None]
    models = of_group("models", {"a": sft, "mean": mean, "unknown": made_by("pretrain", None)}) | {"reward": None}
    for same in (tokens, again, None):  # shards made anew with the same tokenizer are no other tokenizer
        require_tokenizer("best", same, models)
    with pytest.raises(UserError) as error:
        require_tokenizer("best", other, models)
    assert str(error.value).startswith(
        "best: inputs.models.a (sft) was trained with another tokenizer than inputs.tokens has: its ids stand for other text. "
    )
