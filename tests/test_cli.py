"""The command line: fast help, typos refused with the nearest name before any work, one line per error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from herd.cli import main
from herd.recipe.commands import COMMANDS


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, json; from herd.cli import main; main(['--help']); "
        "print(json.dumps([m for m in ('torch', 'hydra', 'scipy', 'pytorch_lightning', 'sklearn') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in out for name in COMMANDS)
    assert json.loads(out.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "Did you mean 'pretrain'"),
        (["pretrain", "modle=tiny"], "Did you mean 'model'"),
        (["pretrain", "model=tinny"], "Did you mean 'tiny'"),
        (["pretrain", "model.dimm=3"], "Did you mean 'model.dim'"),
        (["pretrain", "+model.dimm=3"], "Did you mean 'dim'"),
        (["pretrain", "++model.dimm=3"], "Did you mean 'dim'"),
        (["pretrain", "model.dim=wide"], "model.dim"),
        (["pretrain", "inputs.tokns=x"], "Did you mean 'tokens'"),
        (["pretrain", "run.nam=x"], "Did you mean 'run.name'"),
        (["pretrain", "inputs.tokens=/nowhere"], "'/nowhere' is no finished stage"),
        (["recipe", "recipe=latop"], "Did you mean 'laptop'"),
        (["recipe", "+untill=curate"], "Did you mean 'until'"),
        (["recipe", "until=curat"], "Did you mean 'curate'"),
        (["lineage"], "takes one path"),
        (["lineage", "/nowhere/at/all"], "does not exist"),
        (["doctor", "x"], "takes no arguments"),
    ],
)
def test_typos_end_in_one_line_with_the_nearest_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not list(tmp_path.rglob("store"))


def test_multirun_refuses_a_typo_before_it_launches(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "herd.cli", "pretrain", "-m", "++model.dimm=3,4", f"hydra.sweep.dir={tmp_path}"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Did you mean 'dim'" in done.stderr


def test_doctor_tells_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert all(word in out for word in ("python", "memory", "torch", "hub"))


def test_cfg_job_shows_the_composed_configuration(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "herd.cli", "pretrain", "--cfg", "job", "seed=5"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "seed: 5" in done.stdout
    assert "n_layers:" in done.stdout
