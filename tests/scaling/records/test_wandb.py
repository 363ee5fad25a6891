"""W&B runs: real offline runs written by the package, damaged files, and the online API without a key."""

from pathlib import Path
from typing import Any

import pytest

from herd.config.errors import UserError
from herd.scaling.records import wandb as wandb_records
from herd.scaling.records.readers import TableOptions, read_runs, read_table
from herd.scaling.records.wandb import read_offline_run, read_wandb

wandb = pytest.importorskip("wandb")


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three offline runs: two finished, the last failed."""
    folder = tmp_path_factory.mktemp("runs")
    settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True)
    for i in range(3):
        config = {"budget": 6e12, "tokens": 1e6 * (i + 1), "model": {"dim": 64 * i}, "notes": "n" * 40_000}
        run = wandb.init(
            project="p", group="g", name=f"cell-{i}", dir=str(folder), mode="offline", config=config, settings=settings,
            reinit="finish_previous",
        )  # fmt: skip
        for step in range(50):  # past the first block of 32 KiB
            run.log({"loss": 5 - step * 0.01 + i, "text": "t" * 500, "task/arc": step / 100}, step=step)
        run.config.update({"late": i})
        run.summary["nested"] = {"best": i}
        run.finish(exit_code=i // 2)
    wandb.teardown()
    return folder


def test_offline_runs_are_rows_with_config_summary_and_state(offline: Path) -> None:
    runs = sorted((read_offline_run(file) for file in offline.rglob("*.wandb")), key=lambda run: run["name"])
    assert [run["name"] for run in runs] == ["cell-0", "cell-1", "cell-2"]
    assert [run["state"] for run in runs] == ["finished", "finished", "failed"]
    assert runs[1]["config"]["model"] == {"dim": 64} and runs[1]["config"]["late"] == 1
    assert len(runs[1]["config"]["notes"]) == 40_000  # one record over two blocks
    assert runs[1]["summary"]["loss"] == pytest.approx(5.51) and runs[1]["summary"]["nested"] == {"best": 1}
    assert runs[0]["group"] == "g" and runs[0]["project"] == "p" and "_wandb" not in runs[0]["config"]


def test_a_table_of_offline_runs_with_and_without_a_column_map(offline: Path) -> None:
    records = read_runs(f"wandb:{offline}").records
    by_cell = {r.cell: r for r in records}
    assert set(by_cell) == {"cell-0", "cell-1", "cell-2"}
    one = by_cell["cell-1"]
    assert (one.budget, one.tokens, one.tasks, one.status) == (6e12, 2e6, {"arc": 0.49}, "ok")
    assert one.loss == pytest.approx(5.51) and one.parameters == pytest.approx(5e5)
    assert (by_cell["cell-2"].status, by_cell["cell-2"].error) == ("failed", "the W&B run is failed")
    mapped = read_runs(f"wandb:{offline}", TableOptions({"width": "config.model.dim"}, {"name": "cell-1"})).records
    assert [r.width for r in mapped] == [64]
    with pytest.raises(UserError, match=r"no column 'config\.model\.dime'\. Did you mean 'config\.model\.dim'"):
        read_runs(f"wandb:{offline}", TableOptions({"width": "config.model.dime"}))


def test_a_run_cut_short_is_read_up_to_there_and_a_damaged_one_refused(offline: Path, tmp_path: Path) -> None:
    content = next(offline.rglob("*.wandb")).read_bytes()
    cut = tmp_path / "run-cut.wandb"
    cut.write_bytes(content[: len(content) * 3 // 4])
    run = read_offline_run(cut)
    assert run["state"] == "crashed" and run["status"] == "failed" and run["config"]["budget"] == 6e12
    broken = tmp_path / "run-broken.wandb"
    broken.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    with pytest.raises(UserError, match="is damaged at byte"):
        read_offline_run(broken)
    broken.write_bytes(b"text")
    with pytest.raises(UserError, match="not a W&B run file"):
        read_offline_run(broken)
    broken.write_bytes(content[:7])
    with pytest.raises(UserError, match="ended before its first record"):
        read_offline_run(broken)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no W&B runs"):
        read_wandb(str(tmp_path))
    with pytest.raises(UserError, match="neither a folder nor ENTITY/PROJECT"):
        read_wandb(str(tmp_path / "none" / "deeper"))
    for name in ("WANDB_API_KEY",):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="needs a W&B key: `wandb login`, or WANDB_API_KEY=KEY"):
        read_table(Path("wandb:entity/project"))


class _Run:
    def __init__(self, number: int, state: str) -> None:
        self.name, self.id, self.group, self.project, self.state = f"r{number}", str(number), None, "p", state
        self.config = {"parameters": 1e6 + number, "flops": 6e12}
        self.summary = {"loss": 4.0, "_runtime": 3, "histogram": {"values": [1, 2]}}


def test_online_runs_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def __init__(self, **options: Any) -> None: ...

        def runs(self, path: str, **options: Any) -> list[_Run]:
            assert path == "entity/project"
            return [_Run(0, "finished"), _Run(1, "running"), _Run(2, "crashed")]

    monkeypatch.setattr(wandb, "Api", Api)
    records = read_table(Path("wandb:entity/project"))
    assert [(r.cell, r.status, r.error) for r in records] == [
        ("r0", "ok", ""),
        ("r1", "failed", "the W&B run is running"),
        ("r2", "failed", "the W&B run is crashed"),
    ]
    assert records[0].parameters == 1e6 and records[0].loss == 4.0
    assert "summary._runtime" not in wandb_records.read_wandb("entity/project").header
