"""A server that is started, waited for, and ended with the work that needs it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from herd.config.errors import UserError
from herd.runs.progress import progress
from herd.runs.ranks import outside_launch

_END = 40.0  # seconds that a server has to end; its guardian kills it after half of them


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A running server.

    Args:
        command: program and arguments.
        log: file that gets what it prints.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            guarded = [sys.executable, "-m", "herd.generation.engines.guardian", *command]
            self._guardian = subprocess.Popen(
                guarded,
                env=outside_launch(),  # under torchrun it would take itself for a rank
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> str | None:
        """Why nobody answers any more; None while the server runs."""
        status = self._guardian.poll()
        if status is None:
            return None
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = f", and said last: {lines[-1][:300]}" if lines else " without a word"
        return f"the server that engine.command started has ended with status {status}{said} (all it said: {self.log})"

    def end(self) -> None:
        """End it and all that it started."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        try:
            self._guardian.wait(_END)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()


def require_program(program: str) -> None:
    """UserError when there is no such program."""
    if shutil.which(program) is None:
        raise UserError(
            f"engine.command: there is no program '{program}' here: install it (vLLM in an environment of its own, whose bin "
            "folder is put on the PATH), or leave engine=herd, our own."
        )


@contextmanager
def running(command: Sequence[str], log: Path, answers: Callable[[], bool], seconds: float) -> Iterator[ServerProcess]:
    """Start a server, wait until it ``answers``, and end it afterwards, whatever happens.

    Raises:
        UserError: the server ends, or it does not answer in time.
    """
    server = ServerProcess(command, log)
    try:
        start, waited = time.monotonic(), 0.0
        with progress("waiting for the server", unit="s") as bar:
            while not answers():
                why = server.ended()
                if why is not None:
                    raise UserError(f"engine: {why}")
                if time.monotonic() - start > seconds:
                    raise UserError(
                        f"engine: the server that engine.command started does not answer after {seconds:g} s: raise "
                        f"engine.start_seconds, or see what it says in {log}"
                    )
                time.sleep(0.2)
                bar.advance(time.monotonic() - start - waited)
                waited = time.monotonic() - start
        yield server
    finally:
        server.end()
