"""An engine in a thread of its own, which requests join and leave while it runs."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from herd.config.errors import UserError
from herd.generation.engine import Drawn, Engine, Request

# Gets every token of a request, or the error that ended it; called in the engine's thread, so it must not wait.
Sink = Callable[[Drawn | Exception], None]


class Stopped(RuntimeError):
    """The service was closed before a request was drawn to its end."""

    def __init__(self) -> None:
        super().__init__("The server is being stopped.")


class Service:
    """Runs ``engine`` for as long as there is anything to draw, and waits otherwise."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._wishes: deque[Callable[[], None]] = deque()  # what to do between two steps, in the engine's thread
        self._sinks: dict[int, tuple[Sink, set[int]]] = {}  # request -> who listens, samples that have not ended
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request], sink: Sink) -> "Future[list[int]]":
        """Queue requests, all or none; the future gives their numbers, or the UserError that refused one.

        A future that is cancelled in time leaves nothing behind.
        """
        answer: Future[list[int]] = Future()

        def wish() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            numbers: list[int] = []
            try:
                for request in requests:
                    numbers.append(self._engine.submit(request))
            except Exception as error:
                for number in numbers:
                    self._engine.cancel(number)
                which = f"Prompt {len(numbers)}: " if len(requests) > 1 and isinstance(error, UserError) else ""
                answer.set_exception(UserError(f"{which}{error}") if which else error)
                return
            for number, request in zip(numbers, requests, strict=True):
                self._sinks[number] = sink, set(range(request.samples))
            answer.set_result(numbers)

        if not self._add(wish):
            answer.set_exception(Stopped())
        return answer

    def cancel(self, number: int, sample: int | None = None) -> None:
        """Draw no more of a request, or of one of its samples."""

        def wish() -> None:
            self._engine.cancel(number, sample)
            if sample is None:
                self._sinks.pop(number, None)
            else:
                self._ended(number, sample)

        self._add(wish)

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """Stop after the current step; who waits for an answer is told, by :class:`Stopped`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for wish in self._wishes:
            wish()
        self._wishes.clear()
        for sink, _ in self._sinks.values():
            sink(Stopped())
        self._sinks.clear()

    def _add(self, wish: Callable[[], None]) -> bool:
        """False when nobody will see to it."""
        with self._changed:
            if not self._closed:
                self._wishes.append(wish)
                self._changed.notify()
            return not self._closed

    def _ended(self, number: int, sample: int) -> None:
        if number in self._sinks:
            self._sinks[number][1].discard(sample)
            if not self._sinks[number][1]:
                del self._sinks[number]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._wishes) or self._engine.busy or self._closed)
                if self._closed:
                    return
                wishes, self._wishes = self._wishes, deque()
            for wish in wishes:
                wish()
            try:
                drawn = self._engine.step()
            except Exception as error:  # whatever it is, those who wait must hear of it
                for number, (sink, _) in list(self._sinks.items()):
                    self._engine.cancel(number)
                    sink(error)
                self._sinks.clear()
                continue
            for token in drawn:
                if token.request in self._sinks:
                    self._sinks[token.request][0](token)
                    if token.ended:
                        self._ended(token.request, token.sample)
