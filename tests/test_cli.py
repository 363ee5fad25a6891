"""The command line: fast help, typos refused with the nearest name before any work, one line per error."""

import errno
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
    as_module = subprocess.run([sys.executable, "-m", "herd", "--help"], capture_output=True, text=True, check=True).stdout
    assert out.startswith(as_module)
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
        (["reward", "epochs=nan"], "'epochs' is nan: give a finite number"),
        (["reject", "temperature=inf"], "'temperature' is inf: give a finite number"),
        (["average", "weights.sft=3"], "'weights' for `herd average` takes names of your own: write ++weights.sft=VALUE"),
        (["pretrain", "inputs.tokns=x"], "Did you mean 'tokens'"),
        (["pretrain", "run.nam=x"], "Did you mean 'run.name'"),
        (["pretrain", "inputs.tokens=/nowhere"], "'/nowhere' is no finished stage"),
        (["curate", "optimizer=adamw"], "`herd curate` has no group 'optimizer'"),
        (["pretrain", "precision=fp8"], "Choices: bf16, fp32"),
        (
            ["pretrain", "hardware=gpu", "precision=bf16", "model=40m", "inputs.tokens=/nowhere"],
            "'/nowhere' is no finished stage",
        ),
        (["pretrain", "run.name=../elsewhere"], "run.name is '../elsewhere'"),
        (["pretrain", "run.name="], "run.name is ''"),
        (["pretrain", "model"], "'model' is no key=value"),
        (["recipe", "stages.curate.extra=[source=jsonl]"], "[source=jsonl]' is no key=value"),
        (["curate", "source=jsonl"], "'source.path' is not set"),
        (["curate", "source=jsonl", "source.pth=x"], "Did you mean 'source.path'"),
        (["recipe", "name=store", "until=curate"], "run.name is 'store'"),
        (["curriculum", "out=plan.txt"], "'plan.txt' does not end in .png"),
        (["recipe", "stages.curat.extra=[]"], "has no stage 'curat'. Did you mean 'curate'"),
        (["recipe", "stages.round-1/sft.extra=['epoch=3']"], "Stage 'round-1/sft' of recipe 'laptop': Unknown key 'epoch'"),
        (["recipe", 'stages.round-1/sft.extra=["epochs=-3"]'], "Stage 'round-1/sft' of recipe 'laptop': window must"),
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
    for node in {"tokenize", "pretrain", "reward", "dialogs"} - {*arguments}:  # inputs are looked at before values
        (tmp_path / "runs" / "default" / node).mkdir(parents=True)
        (tmp_path / "runs" / "default" / node / "manifest.json").write_text("{}")
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not list(tmp_path.rglob("store"))


def test_a_missing_input_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = "import sys; from herd.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    for given, named in (
        ([], "inputs.tokens: "),
        (["inputs.dialogs.a=/nowhere"], "inputs.dialogs.a: '/nowhere'"),
        (["run=x"], "runs/x/tokenize'"),
    ):
        program = [sys.executable, "-c", code, "sft", *given]
        done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (2, "False\n")
        assert named in done.stderr and len(done.stderr.splitlines()) == 1


def test_multirun_refuses_a_typo_before_it_launches(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "herd.cli", "scaling-plan", "-m", "++plan.budgetts=3,4", f"hydra.sweep.dir={tmp_path}"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Did you mean 'budgets'" in done.stderr


def test_doctor_tells_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert all(word in out for word in ("python", "memory", "torch", "hub"))


def test_cfg_job_shows_the_composed_configuration(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "herd.cli", "pretrain", "--cfg", "job", "seed=5"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "seed: 5" in done.stdout
    assert "n_layers:" in done.stdout


def test_help_of_a_command_says_what_its_keys_mean(capsys):
    code, out, _ = run(capsys, "scaling-fit", "--help")
    lines = {line.strip().split(":")[0]: line for line in out.splitlines() if ": " in line}
    assert code == 0 and lines["x"].endswith("x: tokens   # axis of the curves, in log10: tokens, parameters")
    assert lines["out"].endswith("# folder that gets a copy of what the command made, e.g. out=results")
    _, out, _ = run(capsys, "pretrain", "--help")
    assert "    dim: 16   # width of the residual stream" in out and "jsonl, wandb" in out.split("Keys")[0]
    assert "jsonl, wandb" not in out.split("Keys")[1]


@pytest.mark.parametrize("command", [*COMMANDS, "recipe", "lineage", "why", "doctor"])
def test_every_command_has_a_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert command in out.splitlines()[0]
    assert "Powered by Hydra" not in out
    if command == "pretrain":
        assert "inputs.tokens=FOLDER   required, <run.root>/<run.name>/tokenize unless given" in out
        assert "precision=fp32   of bf16, fp32" in out


def test_a_pipe_that_closes_early_leaves_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "herd.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_full_disk_and_an_impossible_root_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "scaling-plan", f"run.root={tmp_path / 'file'}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "choose another run.root" in err

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/store/x")

    monkeypatch.setattr("herd.cli.run_command", full)
    code, _, err = run(capsys, "scaling-plan")
    assert (code, err) == (2, "herd: runs/store/x: No space left on device; the same command goes on when that is mended\n")


def test_sigterm_says_whether_work_is_kept_and_ends_the_process_at_once(tmp_path: Path) -> None:
    program = (
        "import os, signal, time, herd.recipe.graph as graph, herd.cli as cli\n"
        "def slow(argv):\n"
        "    if os.fork() == 0: os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"  # a worker dies without a word
        "    os.wait(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
        "cli._doctor = slow\n"
        "cli.main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == -15
    assert done.stderr == "herd: stopped by SIGTERM; the same command goes on from here\n"
