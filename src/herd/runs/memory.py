"""Peak memory of a piece of work, its child processes counted in."""

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Context manager that samples the resident memory of this process and its children.

    ``bytes`` is the largest sum seen. Pages that processes share are counted in each, so it is an upper bound.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self.bytes = 0
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="herd-peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        total = 0
        me = psutil.Process()
        for process in [me, *_children(me)]:
            try:
                total += process.memory_info().rss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.bytes = max(self.bytes, total)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []
