"""The run table: round trip, foreign columns, and refusals by row."""

import dataclasses
import math
from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.scaling.records import Record, by_budget, check_table, read_table, write_table

HEADER = "cell,budget,parameters,tokens,flops,loss,flops_convention,status"


def rows_of(*lines: str) -> str:
    return "\n".join([HEADER, *lines]) + "\n"


GOOD = ("a,6e12,1e6,1e6,6e12,4.0,6N,ok", "b,6e12,2e6,5e5,6e12,4.1,6N,ok")


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


def test_a_foreign_table_through_a_column_map(tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    path.write_text("Model Size,Training FLOP,D,nll,set\n1e6,6e12,1e6,4,x\n1e6,6e12,1e6,4.5,y\n", encoding="utf-8-sig")
    columns = {"parameters": "Model Size", "flops": "Training FLOP", "tokens": "D", "loss": "nll"}
    (record,) = read_table(path, columns, {"set": "x"})
    assert (record.budget, record.parameters, record.loss, record.status) == (6e12, 1e6, 4.0, "ok")


def test_budgets_equal_to_rounding_are_one_and_their_order_is_by_value() -> None:
    rows = [Record(str(i), c, 1e5, 1e6 + i, c, 4.0) for i, c in enumerate((6e11 * (1 + 1e-9), 1e11, 6e11))]
    assert [len(group) for group in by_budget(rows).values()] == [1, 2]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("c,6e12,1e6,1e6,6e12,nan,6N,ok", "row 3 (c): loss is nan"),
        ("c,6e12,1e6,1e6,6e12,-1,6N,ok", "row 3 (c): loss is -1.0"),
        ("c,6e12,1e6,0,6e12,4,6N,ok", "tokens is 0"),
        ("c,6e12,1e6,,6e12,4,6N,ok", "line 4: tokens is empty"),
        ("c,6e12,1e6,many,6e12,4,6N,ok", "line 4: tokens 'many' is not a number"),
        ("c,6e12,1e6,1e6,6e12,4,6N,fine", "status 'fine' is none of"),
        ("a,6e12,1e6,1e6,6e12,4.2,6N,ok", "same name as row 1"),
        ("c,6e12,1e6,1e6,6e12,4.0,6N,ok", "row 3 (c) repeats row 1"),
        ("c,6e12,1,1,6e12,4.2,6N,ok", "single units"),
        ("c,6e12,1e6,1e6,6e12,4.2,6N+attention_full,ok", "mixes the FLOP conventions"),
    ],
)
def test_bad_rows_are_refused_by_number(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(rows_of(*GOOD))
    assert len(read_table(path)) == 2
    path.write_text(rows_of(*GOOD, line))
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_failed_row_may_hold_any_loss() -> None:
    check_table([Record("a", 6e12, 1e6, 1e6, 6e12, math.nan, status="diverged")])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "lacks the column tokens, loss, budget"),
        (b"budget,tokens\n1,1\n", "lacks the column loss"),
        (HEADER.encode() + b"\n", "has no rows"),
        (b"\xff\xfe\x00,1", "not a UTF-8 CSV"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_table(path)


def test_missing_file_and_unknown_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run table"):
        read_table(tmp_path / "none.csv")
    path = tmp_path / "table.csv"
    path.write_text(rows_of(*GOOD))
    with pytest.raises(UserError, match="Did you mean 'tokens'"):
        read_table(path, {"token": "tokens"})
    with pytest.raises(UserError, match=r"no column 'los'\. Did you mean 'loss'"):
        read_table(path, {"loss": "los"})
    with pytest.raises(UserError, match="Did you mean 'status'"):
        read_table(path, where={"statu": "ok"})
