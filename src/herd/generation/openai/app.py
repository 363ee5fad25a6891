"""OpenAI's completions and chat completions over HTTP: requests join the engine's running batch."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from herd import __version__
from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.generation.openai.answers import Answers, error_body, events, head_of, whole
from herd.generation.openai.requests import Wish, read_body
from herd.generation.openai.values import Refused
from herd.generation.service import Service, Stopped

T = TypeVar("T")
_LARGEST_BODY = 8_000_000  # bytes


@dataclass(frozen=True)
class Served:
    """What the endpoint offers."""

    name: str  # of the model
    tokenizer: Tokenizer
    service: Service
    window: int  # tokens of prompt and answer together
    longest: int  # new tokens of a chat answer when the client does not say
    dialect: str = "meta"
    hosts: tuple[str, ...] = ("*",)  # names that a request may call this machine


def make_app(served: Served) -> Starlette:
    """The application; its end closes the service."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        served.service.close()

    async def health(request: HttpRequest) -> Response:
        return Response(status_code=200 if served.service.alive else 503)

    async def version(request: HttpRequest) -> Response:
        return JSONResponse({"version": __version__})

    async def models(request: HttpRequest) -> Response:
        card = {"id": served.name, "object": "model", "created": 0, "owned_by": "herd", "max_model_len": served.window}
        if "model" not in request.path_params:
            return JSONResponse({"object": "list", "data": [card]})
        if request.path_params["model"] != served.name:
            return _error(404, f"There is no model {request.path_params['model']!r} here, only {served.name!r}.", "model")
        return JSONResponse(card)

    def completions(kind: str) -> Callable[[HttpRequest], Any]:
        async def answer(request: HttpRequest) -> Response:
            body = await _json(request)
            longest = served.longest if kind == "chat" else 16  # OpenAI's own
            wish = read_body(kind, body, served.tokenizer, served.name, served.window, longest, served.dialect)
            return await _answer(served, kind, wish, request)

        return answer

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/version", version),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", models),
            Route("/v1/chat/completions", completions("chat"), methods=["POST"]),
            Route("/v1/completions", completions("text"), methods=["POST"]),
        ],
        middleware=[Middleware(_OnlyAs, names=served.hosts)],
        exception_handlers={HTTPException: _http_error, UserError: _user_error, Stopped: _stopped, Exception: _fault},
        lifespan=lifespan,
    )


class _OnlyAs:
    """Refuses requests that call this machine by another name than ``names``, IPv6 addresses among them; ``*`` is any."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self._names:
            given = Headers(scope=scope).get("host", "")
            try:
                name = urlsplit(f"//{given}").hostname
            except ValueError:
                name = None
            if name is None or name.rstrip(".") not in self._names:
                message = f"This server is called {', '.join(self._names)}, not {given!r:.80}: start it with another `host`."
                return await _error(400, message)(scope, receive, send)
        await self._app(scope, receive, send)


async def _answer(served: Served, kind: str, wish: Wish, request: HttpRequest) -> Response:
    """What was asked for, or nothing to nobody: who leaves before it begins is waited for no longer."""
    answers, head = Answers(served.tokenizer, served.service, wish), head_of(kind, served.name)
    try:
        if not wish.stream:
            return JSONResponse(await _while_there(request, whole(kind, head, wish, answers)))
        # The first piece is awaited here, so that a refusal is an answer with its own status and no broken stream.
        pieces = answers.pieces()
        first = await _while_there(request, anext(pieces))
    except ClientDisconnect:
        return Response(status_code=499)
    return StreamingResponse(events(kind, head, wish, answers, first, pieces), media_type="text/event-stream")


async def _while_there(request: HttpRequest, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves; ClientDisconnect then."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _json(request: HttpRequest) -> object:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_BODY:
            raise HTTPException(413, f"The body has more than {_LARGEST_BODY:,} bytes.")
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # as in "Unterminated string starting at"
        raise Refused(f"The body is no JSON ({what} at line {error.lineno}, column {error.colno}).") from None
    except (ValueError, RecursionError) as error:
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "too deep, or a number too long"
        raise Refused(f"The body is no JSON ({why}).") from None


def _error(status: int, message: str, key: str | None = None, kind: str = "invalid_request_error") -> JSONResponse:
    code = "model_not_found" if key == "model" else None
    return JSONResponse(error_body(message, key, kind, code), status_code=status)


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    if error.status_code == 404:
        message += " There are /v1/chat/completions, /v1/completions and /v1/models: a client's base_url ends in /v1."
    return _error(error.status_code, message)


async def _user_error(request: HttpRequest, error: Exception) -> Response:
    key = error.key if isinstance(error, Refused) else None
    return _error(404 if key == "model" else 400, str(error), key)


async def _stopped(request: HttpRequest, error: Exception) -> Response:
    return _error(503, str(error), kind="server_error")


async def _fault(request: HttpRequest, error: Exception) -> Response:
    return _error(500, f"{type(error).__name__}: {error}", kind="server_error")
