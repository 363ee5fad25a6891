"""The choices of a body of OpenAI's interface while they are drawn, and the objects that tell them: whole, or as a stream."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import ToolCall
from herd.dialog.tool_answers import AnswerReader
from herd.generation.engine import Drawn
from herd.generation.openai.logprobs import SpelledToken, TokenTrail, logprobs_of
from herd.generation.openai.requests import Wish
from herd.generation.openai.tools import call_of
from herd.generation.service import Service, Stopped
from herd.generation.text_stream import TextStream


@dataclass(frozen=True)
class Piece:
    """Text that one choice gained."""

    choice: int
    text: str
    reason: str | None  # why it ended: stop, length, tool_calls; None while it goes on
    tokens: tuple[SpelledToken, ...] = ()  # that begin in this text, where log-probabilities are asked for
    call: ToolCall | None = None  # that it ends with


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
        self._readers = [AnswerReader(wish.tools) for _ in self._prompts] if wish.tools else []
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
                await asyncio.sleep(0)  # others come in between, and word that the reader has left
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
        read = stream.read
        text = "" if drawn.stopped else stream.push(drawn.token)  # a stop token is no text
        reason, call = None, None
        if drawn.ended:
            text += stream.end()
            reason = "stop" if drawn.stopped or stream.stopped else "length"
        elif stream.stopped:
            self._service.cancel(drawn.request, drawn.sample)
            reason = "stop"
        length = stream.length
        if self._readers:
            reader = self._readers[choice]
            if drawn.token == self._tokenizer.python_tag_id:
                reader.tag(read)
            text = reader.push(text)
            if reason is not None:
                rest, call = reader.end(finished=drawn.stopped)
                text, reason = text + rest, reason if call is None else "tool_calls"
            length = reader.length
        tokens += self._tokens(choice, drawn, self._before[choice] + length)
        return Piece(choice, echoed + text, reason, tokens, call)

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

    def _tokens(self, choice: int, drawn: Drawn, characters: int) -> tuple[SpelledToken, ...]:
        """The tokens of the text's first ``characters`` that were not given; where ids are told, one for each of them."""
        if not self._trails:
            return ()
        trail, stream, every = self._trails[choice], self._streams[choice], self._wish.ids
        if self._wish.stop_told or not drawn.stopped:
            trail.push(drawn.token, drawn.logprob, drawn.alternatives or None)
        return trail.take(characters, last=every or (drawn.ended and not stream.stopped))

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
    of: list[list[Piece]] = [[] for _ in range(wish.choices)]
    async for piece in answers.pieces():
        of[piece.choice].append(piece)
    made = []
    for i, pieces in enumerate(of):
        text, end = "".join(piece.text for piece in pieces), pieces[-1]
        if kind == "chat":
            message: dict[str, Any] = {"role": "assistant", "content": text if text.strip() or end.call is None else None}
            content: dict[str, Any] = {"message": message if end.call is None else message | {"tool_calls": [call_of(end.call)]}}
        else:
            content = {"text": text}
        logprobs = logprobs_of(kind, [token for piece in pieces for token in piece.tokens]) if wish.logprobs else None
        made.append({"index": i, **content, "logprobs": logprobs, "finish_reason": end.reason} | answers.ids_of(i))
    return {**head, "choices": made, "usage": answers.usage()}


async def events(
    kind: str, head: dict[str, Any], wish: Wish, answers: Answers, first: Piece, pieces: AsyncGenerator[Piece, None]
) -> AsyncIterator[str]:
    """Server-sent events: a chunk for each piece of text, then the usage where it was asked for, then the end."""
    head = {**head, "object": "chat.completion.chunk" if kind == "chat" else head["object"]}
    told: dict[str, Any] = {"usage": None} if wish.usage else {}

    async def all_pieces() -> AsyncIterator[Piece]:
        yield first
        async for piece in pieces:
            yield piece

    begun: set[int] = set()
    try:
        async for piece in all_pieces():
            if not (piece.text or piece.tokens or piece.reason or piece.choice not in begun):
                continue
            for choice in _parts(kind, piece, piece.choice in begun):
                yield _event({**head, "choices": [{"index": piece.choice, **choice}], **told})
            begun.add(piece.choice)
        if wish.usage:
            yield _event({**head, "choices": [], "usage": answers.usage()})
        yield "data: [DONE]\n\n"
    except Exception as error:  # the answer has begun: all that is left is to say why it ends
        message = str(error) if isinstance(error, (UserError, Stopped)) else f"{type(error).__name__}: {error}"
        yield _event(error_body(message, kind="server_error"))
    finally:
        await pieces.aclose()


def _parts(kind: str, piece: Piece, begun: bool) -> Iterator[dict[str, Any]]:
    """The chunks of a piece: one, or text, call and end."""
    logprobs = logprobs_of(kind, piece.tokens) if piece.tokens else None
    if kind == "text":
        yield {"text": piece.text, "logprobs": logprobs, "finish_reason": piece.reason}
        return
    role: dict[str, Any] = {} if begun else {"role": "assistant"}
    if piece.call is None:
        yield {"delta": {**role, "content": piece.text}, "logprobs": logprobs, "finish_reason": piece.reason}
        return
    if piece.text or role or logprobs:
        yield {"delta": {**role, "content": piece.text or None}, "logprobs": logprobs, "finish_reason": None}
    yield {"delta": {"tool_calls": [{"index": 0, **call_of(piece.call)}]}, "logprobs": None, "finish_reason": None}
    yield {"delta": {}, "logprobs": None, "finish_reason": piece.reason}


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def error_body(
    message: str, key: str | None = None, kind: str = "invalid_request_error", code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object; half of a surrogate pair, which a message may quote and UTF-8 has no form for, is spelled out."""
    told, param = (None if text is None else text.encode("utf-8", "backslashreplace").decode() for text in (message, key))
    return {"error": {"message": told, "type": kind, "param": param, "code": code}}
