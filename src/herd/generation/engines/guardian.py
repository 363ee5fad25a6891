"""Runs a command for as long as its parent lives: ``python -m herd.generation.engines.guardian COMMAND ...``.

The parent holds the other end of standard input. When that closes, by whatever end the parent met, kill -9 included, the command
and all that it has started are ended too: a server that nobody asks any more would hold a GPU's memory for good.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

_GRACE = 20.0  # seconds between asking and killing


def _end(child: "subprocess.Popen[bytes]") -> None:
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)


def main(command: list[str]) -> int:
    """The command's exit status; 127 when there is no such program."""
    try:
        # A session of its own: its process group is all that it starts, and a terminal's Ctrl-C is not meant for it.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}")
        return 127

    def watch() -> None:
        while os.read(0, 1024):
            pass
        _end(child)

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    with contextlib.suppress(ProcessLookupError):  # what it has left behind
        os.killpg(child.pid, signal.SIGKILL)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
