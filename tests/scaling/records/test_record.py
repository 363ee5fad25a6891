"""The run table: round trip, what is wrong with rows, units and conventions."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.scaling.records.checks import find_problems, refuse
from herd.scaling.records.readers import read_runs, read_table
from herd.scaling.records.record import TABLE_COLUMNS, Record, by_budget, check_table, write_table
from herd.scaling.records.units import LOSS_UNITS, convert_loss, recount_flops

FULL = Record(
    "a", 6e12, 1.1e6, 1e6, 6e12, 4.0, lr=1e-3, steps=7, bytes_per_token=4.5, block_parameters=1_000_000, head_parameters=100_000,
    embedding_parameters=0, layers=4, width=64, seq_len=256, seed=3, schedule="cosine", mixture="web=0.8 code=0.2",
    tasks={"arc": 0.25, "piqa": 0.5},
)  # fmt: skip


def test_round_trip(tmp_path: Path, sweep) -> None:  # type: ignore[no-untyped-def]
    rows = sweep(noise=0.1)
    rows[0] = dataclasses.replace(rows[0], status="failed", loss=math.nan, error='a "quoted", long\nerror', lr=1e-3, steps=7)
    write_table(tmp_path / "table.csv", rows)
    again = read_table(tmp_path / "table.csv")
    assert math.isnan(again[0].loss) and again[0].error == 'a "quoted", long error' and again[0].steps == 7
    assert again[1:] == rows[1:]
    header = (tmp_path / "table.csv").read_text().splitlines()[0].split(",")
    assert header == [
        *("cell", "budget", "parameters", "tokens", "flops", "flops_convention", "lr", "batch_tokens", "steps", "loss"),
        *("status", "error", "seconds"),
    ]


def test_every_field_survives_the_table(tmp_path: Path) -> None:
    other = Record("b", 6e12, 2e6, 5e5, 6e12, 4.1, bytes_per_token=4.5)
    write_table(tmp_path / "table.csv", [FULL, other])
    assert read_table(tmp_path / "table.csv") == [FULL, other]
    header = (tmp_path / "table.csv").read_text().splitlines()[0].split(",")
    assert header[: len(TABLE_COLUMNS)] == list(TABLE_COLUMNS) and header[-2:] == ["task/arc", "task/piqa"]
    assert "loss_unit" not in header  # all of them are what a row without a unit is


def test_budgets_equal_to_rounding_are_one_and_their_order_is_by_value() -> None:
    rows = [Record(str(i), c, 1e5, 1e6 + i, c, 4.0) for i, c in enumerate((6e11 * (1 + 1e-9), 1e11, 6e11))]
    assert [len(group) for group in by_budget(rows).values()] == [1, 2]


def test_a_failed_row_may_hold_any_loss() -> None:
    check_table([Record("a", 6e12, 1e6, 1e6, 6e12, math.nan, status="diverged")])


def test_problems_name_their_rows_and_the_refusal_counts_them() -> None:
    good = [Record(f"g{i}", 6e12, 1e6 + i, 1e6, 6e12, 4.0) for i in range(5)]
    bad = [
        dataclasses.replace(good[0], cell="nan", loss=math.nan, tokens=-1.0),
        dataclasses.replace(good[0], cell="again"),
        dataclasses.replace(good[0], cell="millions", parameters=1.0, tokens=2.0),
        dataclasses.replace(good[0], cell="bits", loss_unit="bits/byte", loss=3.0),
        dataclasses.replace(good[0], cell="kaplan", flops_convention="6N_non_embedding", loss=3.5),
        dataclasses.replace(good[0], cell="odd", loss_unit="bits", loss=3.1),
        dataclasses.replace(good[0], cell="g1", loss=3.2),
    ]
    rows = [*good, *bad]
    problems = find_problems(rows, [record.cell for record in rows])
    assert [(p.index - 5, p.row) for p in problems] == [(i, bad[i].cell) for i in range(7)]
    says = [p.what for p in problems]
    assert says[0] == "tokens is -1.0, loss is nan; must be finite and above 0 (mark a run without a loss status=failed)"
    assert says[1] == "repeats g0: drop one"
    assert "give all three in single units, not millions" in says[2]
    assert "loss_unit is bits/byte, that of most rows nats/token: restate all with loss_unit=nats/token" in says[3]
    assert "flops_convention is 6N_non_embedding, that of most rows 6N" in says[4]
    assert "loss_unit 'bits' is none of nats/token, bits/token, nats/byte, bits/byte" in says[5]
    assert says[6] == "has the same name as g1: keep one"
    with pytest.raises(UserError) as caught:
        refuse(problems, "runs.csv")
    text = str(caught.value)
    assert text.startswith("runs.csv: 7 problems in 7 rows: nan: tokens") and text.endswith("; and 4 more.") and "\n" not in text


def test_bad_rows_are_dropped_only_when_asked_and_then_shown(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("tokens,loss,budget\n1e6,4,6e12\n2e6,nan,6e12\n3e6,x,6e12\n4e6,4,6e12\n")
    with pytest.raises(UserError, match=r"2 problems in 2 rows: line 4: loss 'x' is not a number; line 3 \(row2\): loss is nan"):
        read_runs(str(path))
    from herd.scaling.records.readers import TableOptions

    table = read_runs(str(path), TableOptions(on_bad_rows="drop"))
    assert [record.cell for record in table.records] == ["row1", "row4"]
    assert [problem.row for problem in table.dropped] == ["line 4", "line 3 (row2)"]
    path.write_text("tokens,loss,budget\n2e6,nan,6e12\n")
    with pytest.raises(UserError, match="no row is left to fit"):
        read_runs(str(path), TableOptions(on_bad_rows="drop"))


@given(st.sampled_from(list(LOSS_UNITS)), st.sampled_from(list(LOSS_UNITS)), st.floats(0.1, 10), st.floats(1, 8))
def test_units_convert_there_and_back(one: str, other: str, loss: float, size: float) -> None:
    record = dataclasses.replace(FULL, loss=loss, loss_unit=one, bytes_per_token=size)
    there = convert_loss(record, other)
    assert there.loss_unit == other
    assert convert_loss(there, one).loss == pytest.approx(loss, rel=1e-12)


def test_units_by_hand_and_without_bytes_per_token() -> None:
    record = dataclasses.replace(FULL, loss=2.0, bytes_per_token=4.0)
    assert convert_loss(record, "bits/byte").loss == pytest.approx(2.0 / math.log(2) / 4.0)
    assert convert_loss(dataclasses.replace(record, bytes_per_token=None), "bits/token").loss == pytest.approx(2 / math.log(2))
    with pytest.raises(UserError, match="only with the tokenizer's bytes per token: add the column bytes_per_token"):
        convert_loss(dataclasses.replace(record, bytes_per_token=None), "bits/byte")


def test_flops_by_every_convention() -> None:
    row = dataclasses.replace(FULL, flops=1.0, flops_convention="unstated", embedding_parameters=300_000)
    d = row.tokens
    assert recount_flops(row, "6N").flops == 6 * 1.1e6 * d
    assert recount_flops(row, "6N_non_embedding").flops == 6 * 1e6 * d
    assert recount_flops(row, "6N_total").flops == 6 * 1.4e6 * d
    assert recount_flops(row, "6N+attention_full").flops == (6 * 1.1e6 + 12 * 4 * 64 * 256) * d
    assert recount_flops(row, "6N+attention_causal").flops == (6 * 1.1e6 + 6 * 4 * 64 * 256) * d
    with pytest.raises(UserError, match=r"need the column layers, width, seq_len"):
        recount_flops(Record("a", 1, 1, 1, 1, 1), "6N+attention_full")
    with pytest.raises(UserError, match="no way to count"):
        recount_flops(FULL, "unstated")


def test_attention_counts_agree_with_the_models_own() -> None:
    from herd.model.counts import flops_per_token, parameter_count
    from herd.model.family import family_member

    shape = family_member(512, 2048, 1024)
    n = float(parameter_count(shape, "6N"))
    row = Record("a", 1.0, n, 1e6, 1.0, 4.0, "unstated", layers=shape.n_layers, width=shape.dim, seq_len=1024)
    for convention in ("6N", "6N+attention_full", "6N+attention_causal"):
        assert recount_flops(row, convention).flops == pytest.approx(flops_per_token(shape, 1024, convention) * 1e6)
