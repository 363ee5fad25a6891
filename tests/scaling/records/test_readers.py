"""Tables of any origin: columns found, mapped, derived; units and conventions restated; what is missing said."""

import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from herd.config.errors import UserError
from herd.scaling.records.readers import TableOptions, read_runs, read_table
from herd.scaling.records.record import write_table

HEADER = "cell,budget,parameters,tokens,flops,loss,flops_convention,status"


def rows_of(*lines: str) -> str:
    return "\n".join([HEADER, *lines]) + "\n"


GOOD = ("a,6e12,1e6,1e6,6e12,4.0,6N,ok", "b,6e12,2e6,5e5,6e12,4.1,6N,ok")


def test_a_foreign_table_through_a_column_map(tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    path.write_text("Model Size,Training FLOP,D,nll,set,a c\n1e6,6e12,1e6,4,x,.3\n1e6,6e12,1e6,4.5,y,.4\n", encoding="utf-8-sig")
    columns = {"parameters": "Model Size", "flops": "Training FLOP", "tokens": "D", "loss": "nll", "task/arc": "a c"}
    (record,) = read_table(path, columns, {"set": "x"})
    assert (record.budget, record.parameters, record.loss, record.status) == (6e12, 1e6, 4.0, "ok")
    assert record.flops_convention == "6N" and record.tasks == {"arc": 0.3}


def test_parquet_and_csv_give_the_same_rows(tmp_path: Path, sweep: Any) -> None:
    rows = sweep(noise=0.1)
    write_table(tmp_path / "t.csv", rows)
    table = pyarrow.table({name: [getattr(r, name) for r in rows] for name in ("cell", "budget", "parameters", "tokens", "loss")})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet") == read_table(tmp_path / "t.csv") == read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_tabs_and_semicolons_separate_too(tmp_path: Path, mark: str) -> None:
    text = "tokens,loss,flops,mixture\n1e6,4,6e12,a\n2e6,4,6e12,b\n"
    (tmp_path / "commas.csv").write_text(text)
    (tmp_path / "other.csv").write_text(text.replace(",", mark))
    assert read_table(tmp_path / "other.csv") == read_table(tmp_path / "commas.csv")
    (tmp_path / "mixed.csv").write_text(f"tokens,loss,flops,mixture\n1e6,4,6e12,a{mark}b\n")
    assert read_table(tmp_path / "mixed.csv")[0].mixture == f"a{mark}b"  # a header with commas says what separates


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(" \n")
    with pytest.raises(UserError, match="is empty"):
        read_table(tmp_path / "t.csv")


def test_the_folder_of_a_sweep_is_read_by_its_table(tmp_path: Path, sweep: Any) -> None:
    write_table(tmp_path / "table.csv", sweep())
    assert read_table(tmp_path) == sweep()
    (tmp_path / "table.csv").unlink()
    with pytest.raises(UserError, match=r"a folder without table\.csv"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens,loss,flops\n1e6,4,6e12\n", (1e6, 1e6, 6e12, "6N")),
        ("parameters,loss,flops\n1e6,4,6e12\n", (1e6, 1e6, 6e12, "6N")),
        ("parameters,loss,tokens\n1e6,4,1e6\n", (1e6, 1e6, 6e12, "6N")),
        ("block_parameters,head_parameters,loss,steps,batch_tokens\n9e5,1e5,4,100,1e4\n", (1e6, 1e6, 6e12, "6N")),
        ("parameters,tokens,loss,flops\n1e6,1e6,4,7e12\n", (1e6, 1e6, 7e12, "unstated")),
        ("parameters,tokens,loss,flops,flops_convention\n1e6,1e6,4,7e12,6N_total\n", (1e6, 1e6, 7e12, "6N_total")),
    ],
)
def test_what_a_row_does_not_hold_follows_from_the_rest(tmp_path: Path, text: str, expected: tuple[Any, ...]) -> None:
    (tmp_path / "t.csv").write_text(text)
    (record,) = read_table(tmp_path / "t.csv")
    assert (record.parameters, record.tokens, record.flops, record.flops_convention) == expected
    assert record.budget == record.flops


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("c,6e12,1e6,1e6,6e12,nan,6N,ok", "line 4 (c): loss is nan"),
        ("c,6e12,1e6,1e6,6e12,-1,6N,ok", "line 4 (c): loss is -1.0"),
        ("c,6e12,1e6,0,6e12,4,6N,ok", "tokens is 0"),
        ("c,,1e6,,,4,6N,ok", "line 4: tokens is empty"),
        ("c,6e12,1e6,many,6e12,4,6N,ok", "line 4: tokens 'many' is not a number"),
        ("c,6e12,1e6,1e6,6e12,4,6N,fine", "status 'fine' is none of"),
        ("a,6e12,1e6,1e6,6e12,4.2,6N,ok", "line 4 (a): has the same name as line 2 (a)"),
        ("c,6e12,1e6,1e6,6e12,4.0,6N,ok", "line 4 (c): repeats line 2 (a)"),
        ("c,6e12,1,1,6e12,4.2,6N,ok", "single units"),
        ("c,6e12,1e6,1e6,6e12,4.2,6N+attention_full,ok", "flops_convention is 6N+attention_full, that of most rows 6N"),
        ("c,6e12,1e6,1e6,6e12,4.2,7N,ok", "flops_convention '7N' is none of"),
        ("c,6e12,1e6,1e6,6e12,4.2,6N,ok,more", "line 4 has more fields than the header"),
    ],
)
def test_bad_rows_are_refused_by_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(rows_of(*GOOD))
    assert len(read_table(path)) == 2
    path.write_text(rows_of(*GOOD, line))
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"x\n1\n", "lacks the column loss, tokens, budget"),
        (b"budget,tokens\n1,1\n", "lacks the column loss"),
        (b"loss,tokens\n1,1\n", r"lacks the column budget \(it has: loss, tokens\): name it with \+\+columns\.budget=COLUMN"),
        (b"loss,tokens,tokens\n1,1,1\n", "the column 'tokens' more than once"),
        (HEADER.encode() + b"\n", "has no rows"),
        (b"\xff\xfe\x00,1", "not a UTF-8 CSV"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_table(path)


def test_missing_file_unknown_columns_and_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run table"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "no.parquet").write_text("x")
    with pytest.raises(UserError, match="not a Parquet file"):
        read_table(tmp_path / "no.parquet")
    path = tmp_path / "table.csv"
    path.write_text(rows_of(*GOOD))
    with pytest.raises(UserError, match="Did you mean 'tokens'"):
        read_table(path, {"token": "tokens"})
    with pytest.raises(UserError, match=r"no column 'los'\. Did you mean 'loss'"):
        read_table(path, {"loss": "los"})
    with pytest.raises(UserError, match="Did you mean 'status'"):
        read_table(path, where={"statu": "ok"})
    for options, says in (
        ({"on_bad_rows": "dorp"}, "Did you mean 'drop'"),
        ({"loss_unit": "bits"}, "Unknown loss unit 'bits'"),
        ({"flops_convention": "6M"}, "Unknown FLOP convention '6M'"),
    ):
        with pytest.raises(UserError, match=says):
            TableOptions(**options)  # type: ignore[arg-type]


def test_losses_of_two_units_are_restated_where_bytes_per_token_are_known(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = "1e6,2.0,6e12,nats/token,4\n2e6,0.7,6e12,bits/byte,4\n3e6,2.1,6e12,nats/token,\n"
    path.write_text("tokens,loss,budget,loss_unit,bytes_per_token\n" + lines)
    with pytest.raises(UserError, match=r"line 3 \(row2\): loss_unit is bits/byte, that of most rows nats/token"):
        read_runs(str(path))
    records = read_runs(str(path), TableOptions(loss_unit="nats/token")).records
    assert [r.loss for r in records] == pytest.approx([2.0, 0.7 * 4 * math.log(2), 2.1])
    with pytest.raises(UserError, match=r"line 4 \(row3\): nats/token become bits/byte only with the tokenizer"):
        read_runs(str(path), TableOptions(loss_unit="bits/byte"))
    records = read_runs(str(path), TableOptions(loss_unit="bits/byte", constants={"bytes_per_token": "4"})).records
    assert {r.loss_unit for r in records} == {"bits/byte"} and records[1].loss == 0.7


def test_recounted_flops_move_the_budgets_or_show_that_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    head = "tokens,loss,budget,flops_convention,block_parameters,head_parameters,embedding_parameters\n"
    path.write_text(head + "1e6,4,6e12,6N,9e5,1e5,5e4\n5e5,4.1,6e12,6N,1.8e6,2e5,1e5\n")
    options = TableOptions(flops_convention="6N_non_embedding")
    records = read_runs(str(path), options).records
    assert [r.flops for r in records] == pytest.approx([5.4e12, 5.4e12])
    assert [r.budget for r in records] == pytest.approx([5.4e12, 5.4e12])
    path.write_text(head + "1e6,4,6e12,6N,9e5,1e5,5e4\n5e5,4.1,6e12,6N,1e6,1e6,1e5\n")
    with pytest.raises(UserError, match=r"has 1\.34 x its budget's FLOPs by 6N_non_embedding"):
        read_runs(str(path), options)


def test_the_digitised_sweep_of_the_paper(reference_data: Path) -> None:
    path = reference_data / "scaling" / "llama3-isoflop" / "llama_3_isoflops.csv"
    records = read_table(path, where={"condition": "raw_loss"})
    assert len(records) == 133 and len({r.budget for r in records}) == 10
    # The other half of the file holds the same points after a transform: without `where` it is two sweeps in one.
    assert len(read_table(path)) == 266


def test_foreign_sets_of_other_shapes(reference_data: Path) -> None:
    epoch = reference_data / "scaling" / "epoch-research-analyzing-chinchilla" / "svg_extracted_data.csv"
    records = read_table(epoch, {"parameters": "Model Size", "flops": "Training FLOP"})
    assert len(records) == 245 and all(r.flops_convention == "6N" for r in records)
    forms = reference_data / "scaling" / "formll-resolving-scaling-law-discrepancies" / "isoflop_points.csv"
    columns, where = {"parameters": "n"}, {"config": "rw|base|long|kaplan|standard|val"}
    assert len(read_table(forms, columns, where)) > 100
