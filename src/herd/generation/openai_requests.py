"""Bodies of OpenAI's completions and chat completions: checked, and turned into what the engine draws."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from herd.config.errors import UserError, nearest
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import Role, parse_messages
from herd.dialog.render import render
from herd.generation.choose import SamplingConfig
from herd.generation.engine import Request

_MOST_SAMPLES = 128
# Keys that change nothing here, so that clients may send them.
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity")
# Keys of what is not offered: only these values, which ask for nothing, are taken.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "top_logprobs": (None, 0),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
}
_COMMON = ("model", "n", "seed", "temperature", "top_p", "top_k", "max_tokens", "stop", "stream", "stream_options", "logprobs")
_OWN = {"chat": ("messages", "max_completion_tokens"), "text": ("prompt", "stop_token_ids", "ignore_eos", "return_token_ids")}
_ROLES = {"developer": "system"}


class Refused(UserError):
    """A body that cannot be answered; ``key`` is at fault."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Wish:
    """One checked body."""

    requests: tuple[Request, ...]  # a prompt each; their samples are the choices, in order
    stops: tuple[str, ...]  # texts that end a choice
    stream: bool
    usage: bool  # also tell the tokens used at the end of a stream
    logprobs: bool  # also tell the log-probability of each token
    ids: bool = False  # also tell the ids of prompts and answers, stop tokens included


def read_body(
    kind: str, body: object, tokenizer: Tokenizer, model: str, window: int, longest: int, dialect: str = "meta"
) -> Wish:
    """Check a body.

    Args:
        kind: ``chat`` or ``text``.
        model: the name that ``model`` must have, where it is given.
        window: tokens of prompt and answer together.
        longest: new tokens when the body does not say how many.

    Raises:
        Refused: what is wrong, and with which key.
    """
    if not isinstance(body, dict):
        raise Refused("The body must be a JSON object.")
    known = (*_COMMON, *_OWN[kind], *_NOTHING, *_IGNORED)
    for key, value in body.items():
        if key not in known:
            raise Refused(f"Unknown key `{key}`.{nearest(key, known)}", key)
        if key in _NOTHING and value not in _NOTHING[key]:
            why = " (the drawn token's log-probability is all that is kept)" if key == "top_logprobs" else ""
            raise Refused(f"`{key}` is not offered here{why}: leave it out.", key)
    if body.get("model") not in (None, model):
        raise Refused(f"There is no model {body['model']!r} here, only {model!r}.", "model")
    if kind == "chat":
        prompts = [_dialog(body.get("messages"), tokenizer, dialect)]
    else:
        prompts = _prompts(body.get("prompt"), tokenizer)
    samples = _number(body, "n", 1, int, 1, _MOST_SAMPLES)
    length = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    room = window - max(map(len, prompts))
    if room < 1:
        raise Refused(
            f"The prompt has {window - room} tokens; the model's window of {window} leaves no room for an answer: shorten it.",
            "messages" if kind == "chat" else "prompt",
        )
    sampling = SamplingConfig(
        max_new_tokens=_length(body, length, min(longest, room), room, window),
        temperature=_number(body, "temperature", 1.0, float, 0.0, 100.0),
        top_p=_number(body, "top_p", 1.0, float, 1e-9, 1.0),
        top_k=_number(body, "top_k", 0, int, 0, 2**31),
        seed=_number(body, "seed", secrets.randbits(62), int, -(2**63), 2**63 - 1),
    )
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise Refused("`stop` must be a text or a list of texts, none of them empty.", "stop")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused("`stream_options` must be an object.", "stream_options")
    ends = frozenset(() if _flag(body, "ignore_eos") else tokenizer.stop_ids)
    if body.get("stop_token_ids") is not None:
        ends |= set(_ids(body["stop_token_ids"], tokenizer, "stop_token_ids"))
    stream, ids = _flag(body, "stream"), _flag(body, "return_token_ids")
    if stream and ids:
        raise Refused("`return_token_ids` is not offered for a stream: leave one of them out.", "return_token_ids")
    requests = tuple(Request(tuple(prompt), samples, sampling, ends) for prompt in prompts)
    return Wish(requests, tuple(stops), stream, _flag(options, "include_usage"), _logprobs(body, kind), ids)


def _dialog(messages: object, tokenizer: Tokenizer, dialect: str) -> list[int]:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Refused("`messages` must be a list of objects with `role` and `content`.", "messages")
    rows = []
    for i, message in enumerate(messages):
        row = {key: value for key, value in message.items() if key in ("role", "content")}
        extra = [key for key, value in message.items() if key not in ("role", "content", "name") and value]
        if extra:
            raise Refused(f"messages[{i}]: `{extra[0]}` is not offered here.", "messages")
        row["role"] = _ROLES.get(row["role"], row["role"]) if isinstance(row.get("role"), str) else row.get("role")
        row["content"] = _content(row.get("content"), i)
        rows.append(row)
    try:
        parsed = parse_messages(rows, "messages")
        if parsed[-1].role is Role.ASSISTANT:
            raise Refused("The last message is the assistant's own: end with the one to be answered.", "messages")
        return render(parsed, tokenizer, generation_prompt=True, dialect=dialect).tokens.tolist()
    except UserError as error:
        raise Refused(str(error), "messages") from None


def _content(content: object, i: int) -> object:
    """A text, also from a list of parts."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(f"messages[{i}]: only parts of type `text` are offered here.", "messages")
    return "".join(str(text) for text in texts)


def _prompts(prompt: object, tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of texts, each after the begin-of-text token, or of prompts that are ids, as they stand."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    if isinstance(texts, list) and texts and isinstance(texts[0], int):
        texts = [texts]
    if isinstance(texts, list) and texts and isinstance(texts[0], list):
        return [_ids(ids, tokenizer, "prompt") for ids in texts]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Refused("`prompt` must be a text, a list of texts, a list of token ids, or a list of such lists.", "prompt")
    try:
        return [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)]
    except UserError as error:
        raise Refused(str(error), "prompt") from None


def _ids(ids: object, tokenizer: Tokenizer, key: str) -> list[int]:
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise Refused(f"`{key}`: token ids must be a list of whole numbers.", key)
    wrong = next((i for i in ids if not 0 <= i < tokenizer.vocab_size), None)
    if wrong is not None:
        raise Refused(f"`{key}`: the vocabulary of {tokenizer.vocab_size:,} has no token {wrong}.", key)
    return ids


def _number(body: Mapping[str, Any], key: str, default: Any, kind: type, low: float, high: float) -> Any:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)) or not low <= value <= high:
        bounds = f"from {low:g} to {high:g}" if high < 2**31 else f"{low:g} or more"
        what = "a whole number" if kind is int else "a number"
        raise Refused(f"`{key}` must be {what} {bounds}, not {value!r}.", key)
    return kind(value)


def _length(body: Mapping[str, Any], key: str, default: int, room: int, window: int) -> int:
    wanted = _number(body, key, default, int, 1, 2**31)
    if wanted > room:
        raise Refused(
            f"`{key}` is {wanted:,}, but the prompt's {window - room:,} tokens leave {room:,} of the window of {window:,}.",
            key,
        )
    return int(wanted)


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"`{key}` must be true or false.", key)
    return bool(value)


def _logprobs(body: Mapping[str, Any], kind: str) -> bool:
    """Whether the tokens' log-probabilities are asked for: by true in a chat, by the number of alternatives, 0, for a text."""
    if kind == "chat":
        return _flag(body, "logprobs")
    value = body.get("logprobs")
    if value is None or value is False:
        return False
    if value is True or value != 0:
        raise Refused("`logprobs` may be 0, which tells the drawn tokens' own; alternatives to them are not kept.", "logprobs")
    return True


def choices(requests: Sequence[Request]) -> int:
    """How many answers there will be."""
    return sum(request.samples for request in requests)
