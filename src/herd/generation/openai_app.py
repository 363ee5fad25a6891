"""OpenAI's completions and chat completions over HTTP: requests join the engine's running batch."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from herd import __version__
from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.generation.engine import Drawn
from herd.generation.openai_logprobs import SpelledToken, TokenTrail, logprobs_of
from herd.generation.openai_requests import Refused, Wish, choices, read_body
from herd.generation.service import Service
from herd.generation.text_stream import TextStream

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


@dataclass(frozen=True)
class Piece:
    """Text that one choice gained."""

    choice: int
    text: str
    reason: str | None  # why it ended: stop, length; None while it goes on
    tokens: tuple[SpelledToken, ...] = ()  # that begin in this text, where log-probabilities are asked for


class Answers:
    """The choices of one body while they are drawn.

    Attributes:
        drawn: tokens so far, stop tokens included.
    """

    def __init__(self, served: Served, wish: Wish) -> None:
        self._served, self._wish = served, wish
        self._streams = [TextStream(served.tokenizer, wish.stops) for _ in range(choices(wish.requests))]
        self._trails = [TokenTrail(served.tokenizer) for _ in self._streams] if wish.logprobs else []
        self._first: dict[int, int] = {}  # number of a request -> its first choice
        self.ids: list[list[int]] = [[] for _ in self._streams]  # of each choice, stop tokens included
        self.drawn = 0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Text as it comes, choice by choice; what is left is cancelled when the reader goes away."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Drawn | Exception]()

        def sink(event: Drawn | Exception) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        first, open_choices = 0, set(range(len(self._streams)))
        try:
            for request in self._wish.requests:
                number = await asyncio.wrap_future(self._served.service.submit(request, sink))
                self._first[number] = first
                first += request.samples
            while open_choices:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                piece = self._take(event)
                if piece is not None and piece.choice in open_choices:
                    if piece.reason is not None:
                        open_choices.discard(piece.choice)
                    yield piece
        finally:
            if open_choices:
                for number in self._first:
                    self._served.service.cancel(number)

    def _take(self, drawn: Drawn) -> Piece | None:
        choice = self._first[drawn.request] + drawn.sample
        stream = self._streams[choice]
        if stream.stopped:  # drawn before the engine heard of the stop text
            return None
        self.drawn += 1
        self.ids[choice].append(drawn.token)
        text = "" if drawn.stopped else stream.push(drawn.token)  # a stop token is no text
        reason = None
        if drawn.ended:
            text += stream.end()
            reason = "stop" if drawn.stopped or stream.stopped else "length"
        elif stream.stopped:
            self._served.service.cancel(drawn.request, drawn.sample)
            reason = "stop"
        return Piece(choice, text, reason, self._tokens(choice, drawn))

    def _tokens(self, choice: int, drawn: Drawn) -> tuple[SpelledToken, ...]:
        """The tokens of the text that has just come; where ids are told, those that were drawn, one for each id."""
        if not self._trails:
            return ()
        trail, stream, every = self._trails[choice], self._streams[choice], self._wish.ids
        if every or not drawn.stopped:
            trail.push(drawn.token, drawn.logprob)
        return trail.take(len(stream.text), last=every or (drawn.ended and not stream.stopped))

    def ids_of(self, choice: int) -> dict[str, list[int]]:
        """The ids of a choice and of its prompt, as vLLM names them; nothing where they were not asked for."""
        if not self._wish.ids:
            return {}
        prompts = [request.prompt for request in self._wish.requests for _ in range(request.samples)]
        return {"prompt_token_ids": [*prompts[choice]], "token_ids": self.ids[choice]}

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, once each, and of the answers."""
        prompt = sum(len(request.prompt) for request in self._wish.requests)
        return {"prompt_tokens": prompt, "completion_tokens": self.drawn, "total_tokens": prompt + self.drawn}


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
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(served.hosts))],
        exception_handlers={HTTPException: _http_error, UserError: _user_error, Exception: _fault},
        lifespan=lifespan,
    )


async def _answer(served: Served, kind: str, wish: Wish, request: HttpRequest) -> Response:
    answers = Answers(served, wish)
    head = {
        "id": ("chatcmpl-" if kind == "chat" else "cmpl-") + uuid.uuid4().hex,
        "object": {"chat": "chat.completion", "text": "text_completion"}[kind],
        "created": int(time.time()),
        "model": served.name,
    }
    pieces = answers.pieces()
    if wish.stream:
        # The first piece is awaited here, so that a refusal is an answer with its own status and no broken stream.
        first = await anext(pieces)
        return StreamingResponse(_events(kind, head, wish, answers, first, pieces), media_type="text/event-stream")
    texts = [""] * choices(wish.requests)
    reasons: list[str | None] = [None] * len(texts)
    tokens: list[list[SpelledToken]] = [[] for _ in texts]
    async for piece in pieces:
        texts[piece.choice] += piece.text
        reasons[piece.choice] = piece.reason
        tokens[piece.choice] += piece.tokens
        if answers.drawn % 16 == 0 and await request.is_disconnected():
            await pieces.aclose()
            return Response(status_code=499)
    made = [
        {"index": i, **({"message": {"role": "assistant", "content": text}} if kind == "chat" else {"text": text})}
        | {"logprobs": logprobs_of(kind, tokens[i]) if wish.logprobs else None, "finish_reason": reason}
        | answers.ids_of(i)
        for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return JSONResponse({**head, "choices": made, "usage": answers.usage()})


async def _events(
    kind: str, head: Mapping[str, Any], wish: Wish, answers: Answers, first: Piece, pieces: AsyncGenerator[Piece, None]
) -> AsyncIterator[str]:
    """Server-sent events: a chunk for each piece of text, then the usage where it was asked for, then the end."""
    head = {**head, "object": "chat.completion.chunk" if kind == "chat" else head["object"]}

    def chunk(choice: dict[str, Any] | None, usage: dict[str, int] | None = None) -> str:
        told = {"usage": usage} if wish.usage else {}
        return f"data: {json.dumps({**head, 'choices': [] if choice is None else [choice], **told}, ensure_ascii=False)}\n\n"

    async def all_pieces() -> AsyncIterator[Piece]:
        yield first
        async for piece in pieces:
            yield piece

    begun: set[int] = set()
    try:
        async for piece in all_pieces():
            if not (piece.text or piece.reason or piece.choice not in begun):
                continue
            if kind == "chat":
                role = {} if piece.choice in begun else {"role": "assistant"}
                content = {"delta": {**role, "content": piece.text}}
            else:
                content = {"text": piece.text}  # type: ignore[dict-item]
            begun.add(piece.choice)
            logprobs = logprobs_of(kind, piece.tokens) if piece.tokens else None
            yield chunk({"index": piece.choice, **content, "logprobs": logprobs, "finish_reason": piece.reason})
        if wish.usage:
            yield chunk(None, answers.usage())
        yield "data: [DONE]\n\n"
    except UserError as error:  # the answer has begun: all that is left is to say why it ends
        yield f"data: {json.dumps(_error_body(str(error), None, 'server_error'))}\n\n"
    finally:
        await pieces.aclose()


async def _json(request: HttpRequest) -> object:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_BODY:
            raise HTTPException(413, f"The body has more than {_LARGEST_BODY:,} bytes.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("The body is no JSON.") from None


def _error_body(message: str, key: str | None, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": key, "code": code}}


def _error(status: int, message: str, key: str | None = None, kind: str = "invalid_request_error") -> JSONResponse:
    code = "model_not_found" if key == "model" else None
    return JSONResponse(_error_body(message, key, kind, code), status_code=status)


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    return _error(error.status_code, message)


async def _user_error(request: HttpRequest, error: Exception) -> Response:
    key = error.key if isinstance(error, Refused) else None
    return _error(404 if key == "model" else 400, str(error), key)


async def _fault(request: HttpRequest, error: Exception) -> Response:
    return _error(500, f"{type(error).__name__}: {error}", kind="server_error")
