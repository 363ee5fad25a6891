"""Which engine draws answers: our own, or a server with OpenAI's interface (vLLM, `herd serve`) in a process of its own."""

from __future__ import annotations

import string
from dataclasses import dataclass, field, fields
from urllib.parse import urlsplit

from herd.config.errors import UserError, nearest

HERD, SERVER = "herd", "server"
# What a command may name: the model as a Hugging Face folder, the model's own folder, its tokenizer's, what the server is to call
# the model, and where it is to listen.
PLACES = ("model", "own_model", "tokenizer", "name", "port")


@dataclass(frozen=True)
class EngineConfig:
    """Schema of conf/engine: who draws. Only ``kind`` decides a result; where and how a server runs does not."""

    kind: str = HERD  # herd: our own engine, in this process; server: another process, see url and command
    url: str | None = None  # of a running server that serves the one model asked, e.g. http://127.0.0.1:8000
    model: str | None = None  # with url: its name for the model; null = the only one it serves
    key_variable: str | None = None  # with url: the environment variable that holds the server's API key
    command: list[str] = field(default_factory=list)  # starts a server; of PLACES, in braces, at least {port} must be in it
    arguments: list[str] = field(default_factory=list)  # more of them
    prompts_at_once: int = 64  # in flight; the server batches them as it likes
    start_seconds: float = 1800.0  # until a started server must answer; a large model is long in loading
    answer_seconds: float = 3600.0  # until all samples of a prompt must have come
    retries: int = 4  # of a request whose connection is lost or that is turned away for the moment, after 1, 2, 4, ... s
    checked_prompts: int = 4  # answered first, their log-probabilities compared with our own model's; 0 = none
    largest_difference: float = 0.1  # between the two, nats a token on average; a server of another model is further off

    def __post_init__(self) -> None:
        if self.kind not in (HERD, SERVER):
            raise UserError(f"engine.kind: no '{self.kind}'.{nearest(self.kind, (HERD, SERVER))} Choices: {HERD}, {SERVER}.")
        if self.kind == HERD and (self.url is not None or self.command or self.arguments):
            raise UserError("engine.url, engine.command and engine.arguments are of a server: set engine.kind=server too.")
        if self.kind == SERVER and (self.url is None) == (not self.command):
            raise UserError("engine.kind=server needs one of engine.url (a running server) and engine.command (what starts one).")
        if self.url is not None:
            _require_address(self.url)
        if self.url is None and (self.model is not None or self.key_variable is not None):
            raise UserError("engine.model and engine.key_variable are of a running server: give engine.url too.")
        named = [place for argument in [*self.command, *self.arguments] for place in _places(argument)]
        for place in named:
            if place not in PLACES:
                listed = ", ".join(f"{{{p}}}" for p in PLACES)
                raise UserError(f"engine.command: no {{{place}}}.{nearest(place, PLACES)} It may name {listed}.")
        if self.command and "port" not in named:
            raise UserError("engine.command names no {port}, at which the server is to listen.")
        if min(self.start_seconds, self.answer_seconds, self.largest_difference) <= 0 or self.prompts_at_once < 1:
            raise UserError(
                "engine: start_seconds, answer_seconds and largest_difference must be positive, prompts_at_once 1 or more."
            )
        if min(self.retries, self.checked_prompts) < 0:
            raise UserError("engine: retries and checked_prompts must be 0 or more.")

    def require_one_model(self, command: str, labels: list[str]) -> None:
        """UserError when one running server would have to answer for several models."""
        if self.url is not None and len(labels) > 1:
            raise UserError(
                f"{command}: the server at engine.url serves one model, and {len(labels)} are asked ({', '.join(labels)}): "
                "give engine.command (or engine=vllm), which starts a server for each in turn."
            )


def _require_address(url: str) -> None:
    """UserError for what no request can go to, and for a password, which messages and manifests would tell."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        good = parts.scheme in ("http", "https") and host and parts.port != 0 and url.split() == [url]
        secret = parts.username is not None or parts.password is not None
    except ValueError:  # of brackets, a port, a name
        good, secret = False, "@" in url
    if secret:
        raise UserError("engine.url: leave name and password out: manifests hold it. A key goes by engine.key_variable.")
    if not good:
        raise UserError(f"engine.url: '{url}' is no address of a server: give e.g. http://127.0.0.1:8000.")


def _places(argument: str) -> list[str]:
    try:
        found = [
            (place, spec or conversion) for _, place, spec, conversion in string.Formatter().parse(argument) if place is not None
        ]
    except ValueError as error:
        raise UserError(f"engine.command: '{argument}': {error}; write {{{{ and }}}} for braces of its own.") from None
    if any(more for _, more in found):
        raise UserError(f"engine.command: '{argument}': a place is a name alone; write {{{{ and }}}} for braces of its own.")
    return [place for place, _ in found]


def execution(key: str) -> tuple[str, ...]:
    """Keys below ``key`` that do not decide a result (:class:`herd.runs.stage.Stage`): all but the kind."""
    return tuple(f"{key}.{f.name}" for f in fields(EngineConfig) if f.name != "kind")
