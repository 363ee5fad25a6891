"""The choices of a body of OpenAI's interface while they are drawn, and the objects that tell them: whole, or as a stream."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.generation.engine import Drawn
from herd.generation.openai_logprobs import SpelledToken, TokenTrail, logprobs_of
from herd.generation.openai_requests import Wish
from herd.generation.service import Service
from herd.generation.text_stream import TextStream


@dataclass(frozen=True)
class Piece:
    """Text that one choice gained."""

    choice: int
    text: str
    reason: str | None  # why it ended: stop, length; None while it goes on
    tokens: tuple[SpelledToken, ...] = ()  # that begin in this text, where log-probabilities are asked for


class Answers:
    """The choices of one body.

    Attributes:
        drawn: tokens so far, stop tokens included.
    """

    def __init__(self, tokenizer: Tokenizer, service: Service, wish: Wish) -> None:
        self._tokenizer, self._service, self._wish = tokenizer, service, wish
        self._prompts = [p for p, request in zip(wish.prompts, wish.requests, strict=True) for _ in range(request.samples)]
        before = [len(prompt.text) if wish.echo else 0 for prompt in self._prompts]  # characters
        self._streams = [TextStream(tokenizer, wish.stops) for _ in self._prompts]
        self._trails = [TokenTrail(tokenizer, offset) for offset in before] if wish.logprobs else []
        self._before, self._begun = before, set[int]()
        self._first: dict[int, int] = {}  # number of a request -> its first choice
        self._ids: list[list[int]] = [[] for _ in self._prompts]  # of each choice, stop tokens included
        self.drawn = 0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Text as it comes, choice by choice; what is left is cancelled when the reader goes away."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Drawn | Exception]()

        def sink(event: Drawn | Exception) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        open_choices = set(range(len(self._streams)))
        submitted = self._service.submit(self._wish.requests, sink)
        try:
            first = 0
            numbers = await asyncio.wrap_future(submitted)
            for number, request in zip(numbers, self._wish.requests, strict=True):
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
                submitted.add_done_callback(self._cancel)  # also where the reader left before there was a number

    def _cancel(self, submitted: "Future[list[int]]") -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            for number in submitted.result():
                self._service.cancel(number)

    def _take(self, drawn: Drawn) -> Piece | None:
        choice = self._first[drawn.request] + drawn.sample
        stream = self._streams[choice]
        if stream.stopped:  # drawn before the engine heard of the stop text
            return None
        echoed, tokens = self._echo(choice, drawn)
        if self._wish.nothing_new:
            return Piece(choice, echoed, "length", tokens)
        self.drawn += 1
        self._ids[choice].append(drawn.token)
        text = "" if drawn.stopped else stream.push(drawn.token)  # a stop token is no text
        reason = None
        if drawn.ended:
            text += stream.end()
            reason = "stop" if drawn.stopped or stream.stopped else "length"
        elif stream.stopped:
            self._service.cancel(drawn.request, drawn.sample)
            reason = "stop"
        return Piece(choice, echoed + text, reason, tokens + self._tokens(choice, drawn))

    def _echo(self, choice: int, drawn: Drawn) -> tuple[str, tuple[SpelledToken, ...]]:
        """The prompt, before the first token after it."""
        if not self._wish.echo or choice in self._begun:
            return "", ()
        self._begun.add(choice)
        prompt, trail = self._prompts[choice], TokenTrail(self._tokenizer)
        if self._wish.logprobs:
            if not prompt.added:
                trail.push(prompt.ids[0], None)
            for scored in drawn.prompt:
                trail.push(scored.token, scored.logprob, scored.alternatives or None)
        return prompt.text, trail.take(0, last=True)

    def _tokens(self, choice: int, drawn: Drawn) -> tuple[SpelledToken, ...]:
        """The tokens of the text that has just come; where ids are told, those that were drawn, one for each id."""
        if not self._trails:
            return ()
        trail, stream, every = self._trails[choice], self._streams[choice], self._wish.ids
        if every or not drawn.stopped:
            trail.push(drawn.token, drawn.logprob, drawn.alternatives or None)
        return trail.take(self._before[choice] + stream.length, last=every or (drawn.ended and not stream.stopped))

    def ids_of(self, choice: int) -> dict[str, list[int]]:
        """The ids of a choice and of its prompt, as vLLM names them; nothing where they were not asked for."""
        if not self._wish.ids:
            return {}
        return {"prompt_token_ids": [*self._prompts[choice].ids], "token_ids": self._ids[choice]}

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, once each, and of the answers."""
        prompt = sum(len(request.prompt) for request in self._wish.requests)
        return {"prompt_tokens": prompt, "completion_tokens": self.drawn, "total_tokens": prompt + self.drawn}


def head_of(kind: str, model: str) -> dict[str, Any]:
    """What every answer begins with, whole or in parts."""
    return {
        "id": ("chatcmpl-" if kind == "chat" else "cmpl-") + uuid.uuid4().hex,
        "object": {"chat": "chat.completion", "text": "text_completion"}[kind],
        "created": int(time.time()),
        "model": model,
    }


async def whole(kind: str, head: dict[str, Any], wish: Wish, answers: Answers) -> dict[str, Any]:
    """The object that tells all choices at once."""
    texts = [""] * wish.choices
    reasons: list[str | None] = [None] * len(texts)
    tokens: list[list[SpelledToken]] = [[] for _ in texts]
    async for piece in answers.pieces():
        texts[piece.choice] += piece.text
        reasons[piece.choice] = piece.reason
        tokens[piece.choice] += piece.tokens
    made = [
        {"index": i, **({"message": {"role": "assistant", "content": text}} if kind == "chat" else {"text": text})}
        | {"logprobs": logprobs_of(kind, tokens[i]) if wish.logprobs else None, "finish_reason": reason}
        | answers.ids_of(i)
        for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return {**head, "choices": made, "usage": answers.usage()}


async def events(
    kind: str, head: dict[str, Any], wish: Wish, answers: Answers, first: Piece, pieces: AsyncGenerator[Piece, None]
) -> AsyncIterator[str]:
    """Server-sent events: a chunk for each piece of text, then the usage where it was asked for, then the end."""
    head = {**head, "object": "chat.completion.chunk" if kind == "chat" else head["object"]}

    def chunk(choice: dict[str, Any] | None, usage: dict[str, int] | None = None) -> str:
        told = {"usage": usage} if wish.usage else {}
        return _event({**head, "choices": [] if choice is None else [choice], **told})

    async def all_pieces() -> AsyncIterator[Piece]:
        yield first
        async for piece in pieces:
            yield piece

    begun: set[int] = set()
    try:
        async for piece in all_pieces():
            if not (piece.text or piece.tokens or piece.reason or piece.choice not in begun):
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
    except Exception as error:  # the answer has begun: all that is left is to say why it ends
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        yield _event(error_body(message, kind="server_error"))
    finally:
        await pieces.aclose()


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def error_body(
    message: str, key: str | None = None, kind: str = "invalid_request_error", code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": key, "code": code}}
