"""Answers drawn by a server with OpenAI's completions: vLLM, or `herd serve`.

Token ids go out and token ids come back; no text is tokenised on the way. What is asked for, and the shape of what comes back,
are vLLM's (``vllm/entrypoints/openai/completion/protocol.py``; ``return_token_ids`` exists since 0.10.2):

- ``prompt`` is a list of ids, ``n`` is K; ``stop_token_ids`` with ``ignore_eos`` makes our stop ids the only ones. Every setting
  that a server may have a default of its own for is sent.
- ``token_ids`` of a choice ends with the stop id when ``finish_reason`` is ``stop``, as our samples do, and
  ``logprobs.token_logprobs`` has one entry for each of them (``logprobs: 0`` asks for no alternatives).
- These are log-probabilities of the model itself before temperature and top-p, as ours are, under vLLM's default
  ``--logprobs-mode raw_logprobs``. Another mode, and another model, is noticed: some answers are read with our own model first.

vLLM seeds the k-th sample with ``seed + k``, whatever the prompt, so two prompts with one seed would share their chance
(``vllm/v1/engine/parallel_sampling.py``): each prompt gets a seed of its own. `herd serve` names its streams by prompt and
sample, as the engine in this process does: it gets the seed as it is, and draws the same answers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from herd.config.errors import UserError
from herd.generation.choose import digest_of
from herd.generation.engines.config import EngineConfig
from herd.generation.engines.server_answers import Served, samples_of
from herd.generation.sampler import Asked, Done, Sample
from herd.runs.progress import Progress, progress
from herd.runs.seeds import torch_seed

_LOCAL = ("127.0.0.1", "localhost", "::1")
_BUSY = (408, 425, 429, 502, 503, 504)  # statuses of a server, or of what stands before it, that say: later


def _httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise UserError(
            f"engine.kind=server needs the extra `serve` ({error.name} is missing): pip install 'herd[serve]'."
        ) from None
    return httpx


class ServerSampler:
    """A server's model as a :class:`~herd.generation.sampler.Sampler`.

    Args:
        url: of the server.
        name: of the model there; None: the only one it serves.
        vocab_size: ids that the model knows.
        config: how requests are made.
        ended: why the server cannot answer any more, where that is known.

    Raises:
        UserError: nobody answers there, or not as a server of this interface does, or it does not serve that model.
    """

    def __init__(
        self, url: str, name: str | None, vocab_size: int, config: EngineConfig, ended: Callable[[], str | None] = lambda: None
    ) -> None:
        self._url, self._config, self._vocab_size, self._ended = base_of(url), config, vocab_size, ended
        self._headers = _headers(config)
        card = self._card(name)
        self.name = str(card["id"])
        self.window = int(card["max_model_len"]) if isinstance(card.get("max_model_len"), int) else None
        self._software = str(card.get("owned_by") or "unknown")
        self.about: dict[str, Any] = {
            "kind": "server",
            "software": self._software,
            "version": self._version(),
            "model": self.name,
        }

    def draw(self, asked: Asked, done: Done | None = None) -> list[list[Sample]]:
        """As :func:`herd.generation.sampler.generate`; UserError also when the server dies, refuses or answers nonsense."""
        served = self.answer(asked, done)
        return [[answer.sample for answer in of] for of in served]

    def answer(self, asked: Asked, done: Done | None = None) -> list[list[Served]]:
        """As :meth:`draw`, each answer with the log-probabilities of its tokens."""
        longest = asked.config.max_new_tokens
        for i, prompt in enumerate(asked.prompts):
            if not prompt:
                raise UserError(f"Prompt {i}: the prompt is empty: give it at least the begin-of-text token.")
            if self.window is not None and len(prompt) + longest > self.window:
                raise UserError(
                    f"Prompt {i}: the prompt has {len(prompt)} tokens; with max_new_tokens={longest} the server's max_model_len "
                    f"of {self.window} cannot hold it: lower max_new_tokens, or serve with a larger one."
                )
        if not asked.prompts:
            return []
        with progress("sampling", len(asked.prompts) * asked.samples, "samples") as bar:
            try:
                return asyncio.run(self._draw_all(asked, done, bar))
            except BaseExceptionGroup as group:  # of several requests that failed, what the first one met
                raise _first(group) from None

    async def _draw_all(self, asked: Asked, done: Done | None, bar: Progress) -> list[list[Served]]:
        httpx, found = _httpx(), [list[Served]() for _ in asked.prompts]
        waiting = iter(range(len(asked.prompts)))
        at_once = min(self._config.prompts_at_once, len(asked.prompts))

        async def worker(client: Any) -> None:
            for i in waiting:
                prompt = list(asked.prompts[i])
                answer = await self._post(client, self._body(prompt, asked))
                found[i] = samples_of(answer, prompt, asked, self._vocab_size, self._url)
                if done is not None:
                    done(i, [answer.sample for answer in found[i]])
                bar.advance(asked.samples)

        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        async with (
            httpx.AsyncClient(limits=limits, **self._settings(self._config.answer_seconds)) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(at_once):
                group.create_task(worker(client))
        return found

    def _body(self, prompt: list[int], asked: Asked) -> dict[str, Any]:
        ours, config = self._software == "herd", asked.config
        return {
            "model": self.name,
            "prompt": prompt,
            "n": asked.samples,
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "min_p": 0,
            "repetition_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            # Sample k is seeded with seed + k, which must stay within 63 bits.
            "seed": config.seed if ours else torch_seed(config.seed, "server", digest_of(prompt)) >> 1,
            "stop_token_ids": sorted(asked.stops),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }

    async def _post(self, client: Any, body: dict[str, Any]) -> Any:
        """The server's answer, asked again while the connection is lost or the server says: later."""
        httpx, attempts = _httpx(), self._config.retries + 1
        for attempt in range(attempts):
            last = attempt == attempts - 1
            if attempt:
                await asyncio.sleep(2 ** (attempt - 1))
            try:
                response = await client.post("/v1/completions", json=body)
            except httpx.ReadTimeout:
                seconds = self._config.answer_seconds
                raise UserError(f"engine: {self._url} has not answered a prompt in {seconds:g} s (answer_seconds).") from None
            except httpx.RequestError as error:
                why = self._ended()
                if why is not None:
                    raise UserError(f"engine: {why}") from None
                if last:
                    raise UserError(
                        f"engine: {self._url}: the connection was lost {attempts} times ({_said(error)}): is the server "
                        "still running?"
                    ) from None
                continue
            if response.status_code == 200:
                return _json(response, self._url)
            if last or response.status_code not in _BUSY:
                raise UserError(f"engine: {self._url} refuses a prompt with status {_refusal(response)}")
        raise AssertionError("the last attempt returns or raises")

    def _get(self, path: str) -> Any:
        httpx = _httpx()
        try:
            with httpx.Client(**self._settings(30.0)) as client:
                return client.get(path)
        except httpx.RequestError as error:
            raise UserError(f"engine: no server answers at {self._url} ({_said(error)}).") from None

    def _card(self, name: str | None) -> dict[str, Any]:
        response = self._get("/v1/models")
        if response.status_code != 200:
            raise UserError(f"engine: {self._url}/v1/models answers with status {_refusal(response)}")
        listed = _json(response, self._url)
        cards = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("id"), str) for c in cards):
            raise UserError(f"engine: {self._url}/v1/models lists no models: this is no server with OpenAI's interface.")
        found = [card for card in cards if name in (None, card["id"])]
        if len(found) != 1:
            ids = ", ".join(card["id"] for card in cards) or "none"
            raise UserError(f"engine: {self._url} serves {ids}: say with engine.model which of them is meant (now {name}).")
        return dict(found[0])

    def _version(self) -> str | None:
        response = self._get("/version")
        try:
            return str(response.json()["version"]) if response.status_code == 200 else None
        except (ValueError, KeyError, TypeError):
            return None

    def _settings(self, seconds: float) -> dict[str, Any]:
        # A proxy of the environment is for other machines.
        remote = urlsplit(self._url).hostname not in _LOCAL
        timeout = _httpx().Timeout(seconds, connect=10.0)
        secure = self._url.startswith("https:")  # else no certificates need be read, which takes longer than a request
        return {"base_url": self._url, "headers": self._headers, "timeout": timeout, "trust_env": remote, "verify": secure}


def base_of(url: str) -> str:
    """The server's address, given with or without ``/v1``."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def answers(url: str) -> bool:
    """Whether a server at this machine says that it is ready."""
    httpx = _httpx()
    try:
        return bool(httpx.get(f"{url}/health", timeout=5.0, trust_env=False, verify=False).status_code == 200)
    except httpx.RequestError:
        return False


def _headers(config: EngineConfig) -> dict[str, str]:
    if config.key_variable is None:
        return {}
    key = os.environ.get(config.key_variable)
    if not key:
        raise UserError(f"engine.key_variable: the environment has no {config.key_variable}: set it to the server's API key.")
    if not all("!" <= letter <= "~" for letter in key):  # httpx would tell the key as it refuses it
        raise UserError(f"engine.key_variable: {config.key_variable} holds a space, a line end or a letter that no key has.")
    return {"Authorization": f"Bearer {key}"}


def _json(response: Any, url: str) -> Any:
    try:
        return response.json()
    except ValueError:
        raise UserError(f"engine: {url} answers with something that is no JSON: {response.text[:80]!r}.") from None


def _refusal(response: Any) -> str:
    """Status and message, from any of the shapes that servers give errors."""
    message: Any = response.text
    try:
        body = response.json()
        inner = body.get("error", body)
        message = inner.get("message") or inner.get("detail") or message if isinstance(inner, dict) else inner
    except (ValueError, AttributeError):
        pass
    return f"{response.status_code}: {' '.join(str(message).split())[:300]}"


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves = list(_leaves(group))
    return next((error for error in leaves if isinstance(error, UserError)), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
