"""A sampler for a model on disk: our own engine, or a server that is found or started for as long as it is needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.generation.choose import SamplingConfig
from herd.generation.engines.config import HERD, EngineConfig
from herd.generation.engines.server_process import free_port, require_program, running
from herd.generation.engines.server_sampler import ServerSampler, answers
from herd.generation.kept import KEPT, KeptSampler
from herd.generation.sampler import Asked, Done, OwnSampler, Sample, Sampler
from herd.interchange.export import export, require_vocabulary
from herd.model.config import ModelConfig
from herd.model.io import REWARD, load_model, open_model
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import token_logprobs
from herd.runs.atomic import write_json

_CHECKED_TOKENS = 32  # of an answer that is read with our own model
# Unlikely tokens tell models apart, and log-probabilities taken after the temperature from those before it.
_CHECKED_TEMPERATURE = 1.5
_SAME = "software", "version", "model"  # of a server, when a stage goes on
_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Writer:
    """A model on disk that answers."""

    label: str  # what messages and a server call it
    folder: Path  # with config.json
    config: ModelConfig

    @classmethod
    def open(cls, label: str, folder: Path, given_as: str) -> Writer:
        """Without reading its weights; UserError, naming the input ``given_as``, for a reward model."""
        model = open_model(folder)
        if model.kind == REWARD:
            raise UserError(f"{given_as}: {folder} is a reward model: it scores text and writes none.")
        return cls(label, folder, model.config)


class OpenedSampler:
    """A sampler that loads its model, or starts its server, when the first answer is wanted that is not there from before.

    Attributes:
        about: which engine draws, for the manifest; of a server all that it says of itself, once it has drawn.
    """

    def __init__(self, kind: str, opening: AbstractContextManager[Sampler], stack: ExitStack, folder: Path, label: str) -> None:
        self._about_file = folder / f"engine-{label.replace('/', '_')}.json"
        self.about: dict[str, Any] = {"kind": kind}
        self._before: dict[str, Any] | None = None
        if self._about_file.exists():  # of what drew the answers that are there from before
            self.about = self._before = json.loads(self._about_file.read_text(encoding="utf-8"))
        self._opening, self._stack = opening, stack
        self._kept = KeptSampler(self._opened, folder, label)
        self._sampler: Sampler | None = None

    def draw(self, asked: Asked, done: Done | None = None) -> list[list[Sample]]:
        """As the engine does; answers are kept as they are drawn."""
        found = self._kept.draw(asked, done)
        if isinstance(self._sampler, _Checked):
            write_json(self._about_file, self.about)
        return found

    def _opened(self) -> Sampler:
        if self._sampler is None:
            self._sampler = self._stack.enter_context(self._opening)
            if isinstance(self._sampler, _Checked):
                self._take_over(self._sampler)
        return self._sampler

    def _take_over(self, server: _Checked) -> None:
        """Answers of one stage come from one server: another one draws by other numbers, and perhaps from other weights."""
        now, before = ({k: about.get(k) for k in _SAME} if about else None for about in (server.about, self._before))
        if before not in (None, now):
            told = " and ".join(" ".join(str(value) for value in of.values()) for of in (before, now) if of)
            raise UserError(
                f"engine: answers are there from before that another server drew ({told}): go on with that one, or remove "
                f"{self._about_file.parent} and begin anew."
            )
        self.about = server.about
        write_json(self._about_file, self.about)


@contextmanager
def sampler_of(
    config: EngineConfig, writer: Writer, tokenizer: Tokenizer, dialect: str, scratch: Path, batch_size: int = 256
) -> Iterator[OpenedSampler]:
    """What draws answers of a model, for as long as the block lasts.

    Args:
        config: which engine.
        writer: whose answers.
        tokenizer: of that model.
        dialect: of the chat template that an export gets.
        scratch: folder for an export, a server's log, and the answers, which a stage that is killed finds there.
        batch_size: samples that our own engine draws together at most.

    Raises:
        UserError: by the first draw: no such server or program, or a server that does not do what is needed.
    """
    with ExitStack() as stack:
        opening = _open(config, writer, tokenizer, dialect, scratch, batch_size)
        yield OpenedSampler(config.kind, opening, stack, scratch / KEPT / config.kind, writer.label)


@contextmanager
def _open(
    config: EngineConfig, writer: Writer, tokenizer: Tokenizer, dialect: str, scratch: Path, batch_size: int
) -> Iterator[Sampler]:
    if config.kind == HERD:
        yield OwnSampler(load_model(writer.folder).requires_grad_(False), batch_size)
    elif config.url is not None:
        yield _Checked(ServerSampler(config.url, config.model, writer.config.vocab_size, config), writer, config)
    else:
        with _started(config, writer, tokenizer, dialect, scratch) as server:
            yield _Checked(server, writer, config)


@contextmanager
def _started(config: EngineConfig, writer: Writer, tokenizer: Tokenizer, dialect: str, scratch: Path) -> Iterator[ServerSampler]:
    """A server of one model, with what it needs, in a folder that goes when it has ended as it should."""
    require_program(config.command[0])  # before a large model is exported for it
    folder = scratch / f"engine-{writer.label.replace('/', '_')}"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was interrupted
    folder.mkdir(parents=True)
    port, parts = free_port(), [*config.command, *config.arguments]
    places = {
        "model": str((folder / "model").absolute()),
        "own_model": str(writer.folder.absolute()),
        "tokenizer": str((folder / "tokenizer").absolute()),
        "name": writer.label,
        "port": str(port),
    }
    if any("{model}" in part for part in parts):
        model = open_model(writer.folder)
        require_vocabulary(model, tokenizer)
        (folder / "model").mkdir()
        export(model, tokenizer, folder / "model", _SHARD_BYTES, dialect)
    if any("{tokenizer}" in part for part in parts):
        tokenizer.save(folder / "tokenizer")
    url = f"http://127.0.0.1:{port}"
    try:
        command = [part.format(**places) for part in parts]
        with running(command, folder / "server.log", lambda: answers(url), config.start_seconds) as process:
            yield ServerSampler(url, writer.label, writer.config.vocab_size, config, process.ended)
    finally:
        for name in ("model", "tokenizer"):  # the log stays until the stage is done
            shutil.rmtree(folder / name, ignore_errors=True)


class _Checked:
    """A server's sampler whose first answers are read with our own model before any are taken.

    A name says nothing of weights: a server may hold those of another round, an older export, or take its log-probabilities
    after the temperature.
    """

    def __init__(self, server: ServerSampler, writer: Writer, config: EngineConfig) -> None:
        self._server, self._writer, self._config = server, writer, config
        self.about: dict[str, Any] = server.about

    def draw(self, asked: Asked, done: Done | None = None) -> list[list[Sample]]:
        """As the server does."""
        if "logprob_difference" not in self.about and asked.prompts and self._config.checked_prompts:
            self._check(asked)
        return self._server.draw(asked, done)

    def _check(self, asked: Asked) -> None:
        prompts = asked.prompts[: self._config.checked_prompts]
        short = SamplingConfig(min(asked.config.max_new_tokens, _CHECKED_TOKENS), _CHECKED_TEMPERATURE, seed=asked.config.seed)
        drawn = [served[0] for served in self._server.answer(Asked(prompts, 1, short, asked.stops))]
        model = load_model(self._writer.folder).requires_grad_(False)
        differences = [
            abs(theirs - ours)
            for prompt, sample in zip(prompts, drawn, strict=True)
            for theirs, ours in zip(sample.logprobs, _logprobs(model, prompt, sample.tokens), strict=True)
        ]
        mean, most = sum(differences) / len(differences), self._config.largest_difference
        self.about |= {"logprob_difference": mean, "checked_tokens": len(differences)}
        if mean > most:
            raise UserError(
                f"engine: the server's log-probabilities are off those of {self._writer.folder} by {mean:.3g} nats a token "
                f"({len(differences)} tokens; at most {most:g}): it serves another model, or tells them after the temperature "
                "(vLLM: --logprobs-mode raw_logprobs). Where weights are rounded on purpose, raise engine.largest_difference."
            )


@torch.inference_mode()
def _logprobs(model: Transformer, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of ``tokens`` after ``prompt``, nats."""
    row = torch.tensor([[*prompt, *tokens]])
    hidden = model(row[:, :-1])[0, len(prompt) - 1 :]
    return [float(value) for value in token_logprobs(hidden, model.output_weight, row[0, len(prompt) :])]
