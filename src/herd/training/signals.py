"""Being asked to stop: SIGTERM (an end is coming), SIGUSR1 (Slurm's warning of a time limit, ``--signal=USR1@120``) and SIGINT
(Ctrl-C; the second one ends the run at once).

Lightning's own handler reduces over ranks inside the signal handler, and over all ranks again in every step with the host
waiting for the answer; this one notes the signal, and the ranks agree on it without the host waiting for a GPU.
"""

import signal
import threading
from collections import deque
from types import FrameType, TracebackType
from typing import Any

import pytorch_lightning as pl
import torch

# Exit codes: 128 + 15, as a shell has it; and sysexits' EX_TEMPFAIL, "try again later", which nothing else here returns, so that
# a job script can requeue on it (128 + 10 is also what a process without a handler dies with).
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75, signal.SIGINT: 130}
_LAG = 2  # steps by which a GPU's answer is read late, so that the host need not wait for it


class Stopped(Exception):
    """The run was asked to stop, and its checkpoint has been handed over."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signal.Signals(signum)


class StopSignals:
    """Context manager that notes a signal instead of dying of it; the handlers before it are put back."""

    def __init__(self) -> None:
        self.received = 0  # number of the signal; 0 = none
        self._before: dict[int, Any] = {}
        self._pending: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            heard = [number for number in EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def agreed(self, device: torch.device, world: int) -> int:
        """The signal that any rank has received, the same answer on all of them; 0 = none. Called once a step by each."""
        if world == 1:
            return self.received
        mine = torch.full((), self.received, dtype=torch.int32, device=device)
        torch.distributed.all_reduce(mine, op=torch.distributed.ReduceOp.MAX)
        if device.type == "cpu":
            return int(mine)
        host = torch.empty((), dtype=torch.int32, pin_memory=True)
        host.copy_(mine, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((host, event))
        if len(self._pending) <= _LAG:
            return 0
        answer, done = self._pending.popleft()
        done.synchronize()
        return int(answer)


def without_lightnings_own(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling signals, and from asking all ranks about one in every step."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
