"""Bodies of OpenAI's completions and chat completions: checked, and turned into what the engine draws."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herd.config.errors import nearest
from herd.corpus.tokenizer import Tokenizer
from herd.generation.choose import SamplingConfig
from herd.generation.engine import Request
from herd.generation.openai.prompts import Prompt, dialog_prompt, text_prompts
from herd.generation.openai.tools import read_tools
from herd.generation.openai.values import Refused, flag, number, token_ids

_MOST_SAMPLES = 128
_MOST_ALTERNATIVES = 20
# Keys that change nothing here, so that clients may send them.
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "request_id", "priority"),
)
# Keys of what is not offered: only these values, which ask for nothing, are taken.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "best_of": (None, 1),
    # vLLM's
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "use_beam_search": (None, False),
    "prompt_logprobs": (None,),
    "truncate_prompt_tokens": (None,),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "add_special_tokens": (None, True),
}
_NOTHING_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "chat": {
        "functions": (None, []),
        "function_call": (None, "auto", "none"),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "web_search_options": (None,),
        "reasoning_effort": (None, "none"),
        "verbosity": (None, "medium"),
        "echo": (None, False),
        "add_generation_prompt": (None, True),
        "continue_final_message": (None, False),
    },
    "text": {"suffix": (None, "")},
}
_INSTEAD = {
    "functions": "offer `tools`",
    "function_call": "say `tool_choice`",
    "echo": "post to /v1/completions",
    "prompt_logprobs": "say `echo` and `logprobs` to /v1/completions",
}
_STREAM_OPTIONS = ("include_usage", "include_obfuscation")
_COMMON = ("model", "n", "seed", "temperature", "top_p", "top_k", "max_tokens", "stop", "stream", "stream_options", "logprobs")
_OWN = {
    "chat": ("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice"),
    "text": ("prompt", "echo", "stop_token_ids", "ignore_eos", "return_token_ids"),
}


@dataclass(frozen=True)
class Wish:
    """One checked body."""

    prompts: tuple[Prompt, ...]
    requests: tuple[Request, ...]  # one for each prompt; their samples are the choices, in order
    stops: tuple[str, ...]  # texts that end a choice
    stream: bool
    usage: bool  # also tell the tokens used at the end of a stream
    logprobs: bool  # also tell the log-probability of each token
    stop_told: bool = False  # of the token that ended a choice, too
    ids: bool = False  # also tell the ids of prompts and answers, stop tokens included
    tools: frozenset[str] = frozenset()  # names of those offered: an answer may call one
    echo: bool = False  # the prompt is part of the answer
    nothing_new: bool = False  # and all of it: what is drawn is not told

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return sum(request.samples for request in self.requests)


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
    _check_keys(kind, body)
    if body.get("model") not in (None, model):
        raise Refused(f"There is no model {body['model']!r} here, only {model!r}.", "model")
    tools = read_tools(body) if kind == "chat" else ()
    if kind == "chat":
        prompts = [dialog_prompt(body.get("messages"), tools, tokenizer, dialect)]
    else:
        prompts = text_prompts(body.get("prompt"), tokenizer)
    samples = number(body, "n", 1, int, 1, _MOST_SAMPLES)
    room = window - max(len(prompt.ids) for prompt in prompts)
    if room < 1:
        raise Refused(
            f"The prompt has {window - room} tokens; the model's window of {window} leaves no room for an answer: shorten it.",
            "messages" if kind == "chat" else "prompt",
        )
    echo = kind == "text" and flag(body, "echo")
    length = _length(body, 0 if echo else 1, min(longest, room), room, window)
    sampling = SamplingConfig(
        max_new_tokens=max(length, 1),
        temperature=number(body, "temperature", 1.0, float, 0.0, 100.0),
        top_p=number(body, "top_p", 1.0, float, 1e-9, 1.0),
        top_k=number(body, "top_k", 0, int, 0, 2**31),
        seed=number(body, "seed", secrets.randbits(62), int, -(2**63), 2**63 - 1),
    )
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise Refused("`stop` must be a text or a list of texts, none of them empty.", "stop")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or not all(key in _STREAM_OPTIONS for key in options):
        raise Refused(f"`stream_options` must be an object with no keys but {', '.join(_STREAM_OPTIONS)}.", "stream_options")
    ends = frozenset(() if flag(body, "ignore_eos") else tokenizer.stop_ids)
    if body.get("stop_token_ids") is not None:
        ends |= set(token_ids(body["stop_token_ids"], tokenizer, "stop_token_ids"))
    stream, ids = flag(body, "stream"), flag(body, "return_token_ids")
    if stream and ids:
        raise Refused("`return_token_ids` is not offered for a stream: leave one of them out.", "return_token_ids")
    alternatives = _alternatives(body, kind)
    told = alternatives is not None
    requests = [Request(prompt.ids, samples, sampling, ends, alternatives or 0, scored=told and echo) for prompt in prompts]
    usage = flag(options, "include_usage")
    return Wish(
        tuple(prompts),
        tuple(requests),
        tuple(stops),
        stream,
        usage,
        logprobs=told,
        stop_told=kind == "text",
        ids=ids,
        tools=frozenset(tool["function"]["name"] for tool in tools),
        echo=echo,
        nothing_new=length == 0,
    )


def _check_keys(kind: str, body: Mapping[str, Any]) -> None:
    """Refused for a key that nobody knows, and for one that asks for what is not offered."""
    nothing = _NOTHING | _NOTHING_OF[kind]
    known = (*_COMMON, *_OWN[kind], *nothing, *_IGNORED)
    for key, value in body.items():
        if key not in known:
            raise Refused(f"Unknown key `{key}`.{nearest(key, known)}", key)
        if key in nothing and value not in nothing[key]:
            raise Refused(f"`{key}` is not offered here: {_INSTEAD.get(key, 'leave it out')}.", key)


def _length(body: Mapping[str, Any], least: int, default: int, room: int, window: int) -> int:
    """New tokens at most."""
    key = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    wanted = number(body, key, default, int, least, 2**31)
    if wanted > room:
        raise Refused(
            f"`{key}` is {wanted:,}, but the prompt's {window - room:,} tokens leave {room:,} of the window of {window:,}.",
            key,
        )
    return int(wanted)


def _alternatives(body: Mapping[str, Any], kind: str) -> int | None:
    """How many likelier tokens to tell with each token's log-probability; None where that is not asked for either."""
    if kind == "chat":
        told, count = flag(body, "logprobs"), number(body, "top_logprobs", 0, int, 0, _MOST_ALTERNATIVES)
        if count and not told:
            raise Refused("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        return count if told else None
    if body.get("logprobs") is False:  # as a chat's body says it
        return None
    return None if body.get("logprobs") is None else int(number(body, "logprobs", 0, int, 0, _MOST_ALTERNATIVES))
