"""Multiple choice: how questions are made, and that likelihood picks what it should."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.evaluation.bench import Bench
from herd.evaluation.choice_items import CHOICES, ChoiceItem, ItemLimits, candidates, drop_known, lexical_overlap, make_items
from herd.evaluation.scoring import LanguageModel, encode_choices
from herd.evaluation.tasks import documentation_choice
from herd.evaluation.tasks.documentation_choice import METRICS, NAME, DocumentationChoice, DocumentationChoiceConfig

LIMITS = ItemLimits(min_characters=20, max_characters=240, max_length_ratio=1.6)
KINDS = ("summary", "description")


def entries_of(bench: Bench, split: str) -> list[dict[str, str]]:
    return [row for row in pq.read_table(bench.documents / "entries.parquet").to_pylist() if row["split"] == split]


def test_items_are_balanced_alike_in_length_and_from_one_package(bench: Bench) -> None:
    found = candidates(entries_of(bench, "heldout"), KINDS, LIMITS, {})
    items = make_items(found, LIMITS, limit=0, seed=0, counts={})
    assert len(items) > 100
    assert len({item.id.removesuffix(f":{item.kind}") for item in items}) == len(items)  # one question an entry
    assert {item.kind for item in items} == set(KINDS)
    package_of = {c.text: c.package for c in found}
    truth = {c.id: c.text for c in found}
    for item in items:
        assert len(set(item.choices)) == CHOICES
        assert item.choices[item.answer] == truth[item.id]
        assert {package_of[choice] for choice in item.choices} == {item.package}
        lengths = sorted(map(len, item.choices))
        assert all(max(n, len(truth[item.id])) <= 1.6 * min(n, len(truth[item.id])) for n in lengths)
    places = Counter(item.answer for item in items)
    assert max(places.values()) - min(places.values()) <= 1
    assert items == make_items(found, LIMITS, limit=0, seed=0, counts={})
    assert items != make_items(found, LIMITS, limit=0, seed=1, counts={})
    assert len(make_items(found, LIMITS, limit=37, seed=0, counts={})) == 37


def test_lexical_overlap_by_hand() -> None:
    choices = ("Read a table.", "Read the file.", "Nothing at all.", "Write it.")
    items = [
        ChoiceItem("1", "summary", "p", "p.read_file(file)\n\n", choices, 1),  # 2 of 3 words: the most
        ChoiceItem("2", "summary", "p", "p.read(it)\n\n", choices, 3),  # 1 of 2 against 1 of 3
        ChoiceItem("3", "summary", "p", "p.f()\n\n", choices, 0),  # no word of any: one of four
        ChoiceItem("4", "summary", "p", "p.write(it)\n\n", choices, 0),
    ]
    assert lexical_overlap(items).tolist() == [1.0, 1.0, 0.25, 0.0]


def test_no_answer_occurs_in_training(bench: Bench) -> None:
    training = pq.read_table(bench.documents / "documents/train-00000-of-00001.parquet")["text"].to_pylist()
    task = DocumentationChoice(DocumentationChoiceConfig(items=0), bench)
    assert task.items
    everything = "\n".join(training)
    assert not [choice for item in task.items for choice in item.choices if choice in everything]
    # Entries of the training side would be found out, right answers and wrong ones.
    counts: dict[str, int] = {}
    leaked = candidates(entries_of(bench, "train")[:30], KINDS, LIMITS, counts)
    assert leaked
    assert drop_known(leaked, training, counts) == []
    assert counts["text_in_training"] == len(leaked)


def test_what_is_left_out_is_counted() -> None:
    base = {"package": "p", "signature": "()", "description": "", "document_id": "d", "split": "heldout"}
    rows = [
        base | {"id": "1", "name": "p.a", "summary": "Short."},
        base | {"id": "2", "name": "p.b", "summary": "A summary that two functions share."},
        base | {"id": "3", "name": "p.c", "summary": "a summary that two   functions share."},
    ]
    counts: dict[str, int] = {}
    found = candidates(rows, ("summary",), LIMITS, counts)
    assert [c.id for c in found] == ["2:summary"]
    assert make_items(found, LIMITS, 0, 0, counts) == []
    assert counts == {"summary_length": 1, "same_text_twice": 1, "too_few_rivals": 1}


def test_every_normalisation_by_hand(bench: Bench, make_lm: Callable[..., LanguageModel]) -> None:
    task = DocumentationChoice(DocumentationChoiceConfig(items=40), bench)
    lm = make_lm()
    found = documentation_choice.score(lm, task.requests)
    task.language_model(lm)
    metrics = task.finish().results["random"][NAME]
    answers = np.array([item.answer for item in task.items])
    logprobs = np.stack([f.logprobs for f in found])
    characters = np.array([[len(c) for c in item.choices] for item in task.items])
    tokens = np.array(
        [[len(c) for c in encode_choices(bench.tokenizer, [(i.context, i.choices)])[0].choices] for i in task.items]
    )
    assert metrics["acc,none"] == pytest.approx((logprobs.argmax(1) == answers).mean())
    assert metrics["acc_norm,none"] == pytest.approx(((logprobs / characters).argmax(1) == answers).mean())
    assert metrics["acc_token,none"] == pytest.approx(((logprobs / tokens).argmax(1) == answers).mean())
    rows = np.arange(len(answers))
    assert metrics["choice_nll_per_character,none"] == pytest.approx((-logprobs / characters)[rows, answers].mean())
    for name in METRICS:
        low, high = metrics[f"{name}_interval,none"]
        assert 0 <= low <= metrics[f"{name},none"] <= high <= 1
    assert len(task.result.samples[NAME]) == 40


def test_a_model_that_knows_is_right_and_the_paired_test_says_so(
    bench: Bench, make_lm: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = DocumentationChoice(DocumentationChoiceConfig(items=80), bench)
    task.language_model(make_lm("first"))
    plain = documentation_choice.score

    def knowing(lm: LanguageModel, requests: list) -> list:
        """As the model, but the true answer is far likelier after its own question."""
        found = plain(lm, requests)
        if requests is not task.requests:
            return found
        return [
            replace(f, logprobs=f.logprobs + 1e4 * (np.arange(CHOICES) == item.answer))
            for f, item in zip(found, task.items, strict=True)
        ]

    monkeypatch.setattr(documentation_choice, "score", knowing)
    task.language_model(make_lm("knows"))
    result = task.finish()
    for name in METRICS:
        assert result.results["knows"][NAME][f"{name},none"] == 1.0
        assert result.results["first"][NAME][f"{name},none"] < 0.6
    [comparison] = result.comparisons
    assert comparison["models"] == ["knows", "first"]
    assert comparison["difference"] > 0.4
    assert comparison["mcnemar_p"] < 1e-6
    assert comparison["interval"][0] > 0.3


def test_no_documented_functions_skip_the_task_with_a_reason(
    bench: Bench, tmp_path, make_lm: Callable[..., LanguageModel]
) -> None:
    table = pq.read_table(bench.documents / "entries.parquet")
    (tmp_path / "documents").mkdir()
    pq.write_table(table.slice(0, 0), tmp_path / "entries.parquet")
    pq.write_table(pa.table({"text": ["nothing"]}), tmp_path / "documents/train-00000-of-00001.parquet")
    empty = replace(bench.documents, path=tmp_path)
    task = DocumentationChoice(DocumentationChoiceConfig(), replace(bench, documents=empty))
    task.language_model(make_lm())
    result = task.finish()
    assert result.results == {}
    assert result.skipped is not None
    assert "documented functions" in result.skipped


def test_unknown_headline_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'acc_norm'"):
        DocumentationChoiceConfig(headline="acc_nrm")
