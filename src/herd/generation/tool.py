"""``herd generate``: continue prompts, or answer messages, with a model of ours."""

import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import Message, Role, parse_messages, require_unicode
from herd.dialog.render import DIALECTS, render_batch
from herd.dialog.rows import read_jsonl, write_jsonl
from herd.generation.engines.config import HERD, EngineConfig
from herd.generation.engines.opened import Writer, sampler_of
from herd.generation.opening import Found, find_generator, load_generator
from herd.generation.sampler import Asked, OwnSampler, Sample, Sampler, SamplingConfig
from herd.runs.tool import Tool


@dataclass(frozen=True)
class GenerateConfig:
    """What `herd generate` draws."""

    model: str  # a run's NAME/NODE, the folder of a stage, or of a model
    prompt: list[str] = field(default_factory=list)  # text to continue, or with chat=true a user's message; may be repeated
    file: str | None = (
        None  # JSONL with more prompts, a row each: {"prompt": TEXT} or {"messages": [{"role": ..., "content": ...}]}
    )
    chat: bool = False  # ask the text of `prompt` as a user's message, in the chat format
    dialect: str | None = None  # of messages: meta, meta_tag, hf, torchtune; null = as the model was trained
    system: str = ""  # system message before it; needs chat=true
    tokenizer: str | None = None  # folder with tokenizer.json; null = that of the model's lineage
    samples: int = 1  # of each prompt, each with its own random stream
    max_new_tokens: int = 128  # tokens after the prompt at most
    temperature: float = 0.8  # logits are divided by this; 0 = always the likeliest token
    top_p: float = 1.0  # keep the smallest set of likeliest tokens whose probability reaches this
    top_k: int = 0  # keep this many likeliest tokens; 0 = all
    seed: int = 0  # of all draws
    stop: list[str] = field(default_factory=list)  # more tokens that end a sample: names of special tokens, or text of one token
    out: str | None = None  # JSONL file that gets a row a sample
    device: str = "cpu"  # cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads of torch; 0 leaves its own choice
    batch_size: int = 64  # samples drawn together
    max_kv_tokens: int = 0  # positions whose keys and values are held at once; 0 = what batch_size samples may need
    root: str = "runs"  # folder of all runs, where names are looked up
    engine: EngineConfig = field(
        default_factory=EngineConfig
    )  # who draws; device, threads, batch_size and max_kv_tokens are ours

    def __post_init__(self) -> None:
        self.sampling()
        if self.dialect is not None:
            DIALECTS.get(self.dialect)
        if not self.prompt and self.file is None:
            raise UserError("There is no prompt: give prompt=TEXT (more than once if you like) or file=PROMPTS.jsonl.")
        if self.system and not self.chat:
            raise UserError("A system message needs the chat format: add chat=true.")
        if min(self.samples, self.batch_size) < 1 or min(self.threads, self.max_kv_tokens) < 0:
            raise UserError("samples and batch_size must be 1 or more, threads and max_kv_tokens 0 or more.")

    def sampling(self) -> SamplingConfig:
        """How tokens are drawn."""
        return SamplingConfig(self.max_new_tokens, self.temperature, self.top_p, self.seed, self.top_k)


def run(config: GenerateConfig) -> None:
    """Draw, then write the rows or print the text."""
    if config.out is not None and (not config.out or Path(config.out).is_dir()):
        raise UserError(f"out: '{config.out}' is no name for a file: give the JSONL file to write.")
    prompts = list(_prompts(config))
    if not prompts:
        raise UserError(f"file: '{config.file}' holds no prompt.")
    found = find_generator(config.model, config.root, config.tokenizer, config.dialect)
    tokenizer = found.tokenizer
    ids = _encode(prompts, tokenizer, found.dialect)
    stops = {*tokenizer.stop_ids, *(_stop_id(text, tokenizer) for text in config.stop)}
    with _sampler(config, found) as sampler:
        drawn = sampler.draw(Asked(ids, config.samples, config.sampling(), frozenset(stops)))
    if config.out is not None:
        rows = [_row(prompt, k, s, tokenizer) for prompt, of in zip(prompts, drawn, strict=True) for k, s in enumerate(of)]
        write_jsonl(Path(config.out), rows)
        print(config.out)
    else:
        _show(prompts, drawn, tokenizer)


@contextmanager
def _sampler(config: GenerateConfig, found: Found) -> Iterator[Sampler]:
    """The engine that draws."""
    if config.engine.kind == HERD:
        model = load_generator(found, config.device, config.threads).model
        yield OwnSampler(model, config.batch_size, config.max_kv_tokens)
        return
    scratch = Path(tempfile.mkdtemp(prefix="herd-generate-"))
    writer = Writer(config.model, found.folder, found.config)
    try:
        with sampler_of(config.engine, writer, found.tokenizer, found.dialect, scratch) as sampler:
            yield sampler
    except BaseException as error:
        if not (isinstance(error, UserError) and any(scratch.rglob("*.log"))):  # what a server said stays
            shutil.rmtree(scratch)
        raise
    shutil.rmtree(scratch)


def _prompts(config: GenerateConfig) -> Iterator[dict[str, Any]]:
    """``prompt`` (text) or ``messages``, and whatever else a row of the file has."""
    system = [{"role": "system", "content": config.system}] if config.system else []
    for text in config.prompt:
        yield {"messages": [*system, {"role": "user", "content": text}]} if config.chat else {"prompt": text}
    if config.file is None:
        return
    for where, row in read_jsonl(Path(config.file)):
        if ("prompt" in row) == ("messages" in row) or not isinstance(row.get("prompt", ""), str):
            raise UserError(f"{where}: a row needs either `prompt`, a text, or `messages`, a list.")
        if "prompt" in row:
            require_unicode([Message(Role.USER, row["prompt"])], where)
        elif parse_messages(row["messages"], where)[-1].role is Role.ASSISTANT:
            raise UserError(f"{where}: the last message is the assistant's own; end with the one to be answered.")
        elif system and row["messages"][0]["role"] == Role.SYSTEM.wire:
            raise UserError(f"{where}: the row has a system message of its own; take it out, or leave out system=.")
        if config.chat and "prompt" in row:
            yield {"messages": [*system, {"role": "user", "content": row["prompt"]}]}
        else:
            yield row | ({"messages": [*system, *row["messages"]]} if system and "messages" in row else {})


def _encode(prompts: list[dict[str, Any]], tokenizer: Tokenizer, dialect: str) -> list[list[int]]:
    """Ids: a text after the begin-of-text token, as in pre-training; messages in the chat format."""
    texts = iter(tokenizer.encode_batch([p["prompt"] for p in prompts if "prompt" in p]))
    dialogs: list[tuple[Message, ...]] = [parse_messages(p["messages"], "messages") for p in prompts if "messages" in p]
    rendered = iter(render_batch(dialogs, tokenizer, generation_prompt=True, dialect=dialect))
    return [[tokenizer.bos_id, *next(texts)] if "prompt" in p else next(rendered).tokens.tolist() for p in prompts]


def _stop_id(text: str, tokenizer: Tokenizer) -> int:
    if text in tokenizer.special_tokens:
        return tokenizer.special_tokens[text]
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise UserError(f"stop: '{text}' is {len(ids)} tokens: give the name of a special token, or text of one token.")
    return ids[0]


def _text(sample: Sample, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(sample.tokens, skip_special_tokens=True)


def _row(prompt: dict[str, Any], k: int, sample: Sample, tokenizer: Tokenizer) -> dict[str, Any]:
    measured = {"finished": sample.finished, "tokens": len(sample.tokens), "logprob": sample.logprob}
    return prompt | {"sample": k, "text": _text(sample, tokenizer)} | measured


def _show(prompts: list[dict[str, Any]], drawn: list[list[Sample]], tokenizer: Tokenizer) -> None:
    """On a terminal each prompt and its samples, in a pipe the text of the samples."""
    if not sys.stdout.isatty():
        texts = [_text(sample, tokenizer) for samples in drawn for sample in samples]
        print("\n\n".join(texts))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for prompt, samples in zip(prompts, drawn, strict=True):
        asked = prompt.get("prompt") or "\n".join(f"{m['role']}: {m.get('content', '')}" for m in prompt.get("messages", ()))
        for sample in samples:
            end = "" if sample.finished else f" ... ({len(sample.tokens)} tokens)"
            console.print(Text(printable(asked), style="dim"), Text(printable(_text(sample, tokenizer))), Text(end, style="dim"))


def printable(text: str) -> str:
    """``text`` without control characters, which could move a terminal's cursor or recolour it; line ends and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


TOOL = Tool(
    name="generate",
    config=GenerateConfig,
    run=run,
    summary="continue prompts or answer messages with a model",
    verbatim=("model", "prompt", "system", "stop", "file", "out", "tokenizer", "root"),
    help="""herd generate model=runs/laptop/pretrain prompt='def main(' temperature=0
herd generate model=runs/laptop/round-2/dpo chat=true prompt='What does os.path.join do?' samples=4 seed=1
herd generate model=laptop/pretrain file=prompts.jsonl out=samples.jsonl
herd generate model=laptop/round-2/dpo file=prompts.jsonl out=samples.jsonl engine=vllm

A sample is a function of the model, its prompt, the settings, the seed and its number, whatever else is drawn beside it.""",
)
