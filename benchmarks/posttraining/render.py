"""Rendering, masking and tokenising dialogs of 300 tokens on one core: new dialogs a second, and where the time goes.

Dialogs are made of the prompts and answers of the open-instruct human evaluation (HERD_REFERENCE_DATA), each distinct text once,
said by turns and cut where a tokenizer has made 300 tokens of them. The tokenizer has 8,192 entries, trained on those texts and
on sources of installed packages (4 million characters). `--large` adds one of 128,256 entries from sources alone (minutes of
training), with dialogs joined anew until it makes 300 tokens of them.

Every turn of a side is a process of its own that renders each dialog ONCE, a hundred at a time: one half of the dialogs from a
cold start (nothing met before), then the other half (`steady`: the process has met other dialogs, none of these; the libraries
remember words themselves). Halves change places from turn to turn, sides take turns. Nothing is warmed by the dialogs that are
timed. `making` is the one-time making of the encoder out of a loaded tokenizer, not part of either rate; `cold with making`
counts it.

Sides, all pinned to one core: herd; herd with the encoding of the tokenizers library in place of fastokens'; encoding of the same
texts alone; and, for orientation, transformers' `apply_chat_template` with the same tokenizer and the template that `herd export`
writes, which gives ids without any mask. `corpus` is the encoding of documents (sources of packages, whole files), as `herd
tokenize` does it.

    python benchmarks/posttraining/render.py [--large] [--wall]

Times are processor time of the process, which other work on the machine moves less; `--wall` takes the wall clock.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy
from measure import save

from herd.corpus.fast_encoder import FastEncoder
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.dialog.hf_template import chat_template
from herd.dialog.masks import sft_mask
from herd.dialog.messages import Message, Role, parse_messages
from herd.dialog.render import render_batch

TOKENS, TURNS, AT_ONCE = 300, 4, 100
CORPUS = 2_000_000  # characters
DATA = Path(os.environ.get("HERD_REFERENCE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
WANTED = 4000  # dialogs a second
HERD, LIBRARY, ALONE, THEIRS = "herd", "herd, encoding by tokenizers", "encoding alone", "transformers, ids without masks"
DOCUMENTS, DOCUMENTS_LIBRARY = "corpus", "corpus, encoding by tokenizers"
SIDES = (HERD, LIBRARY, ALONE, THEIRS, DOCUMENTS, DOCUMENTS_LIBRARY)


def spoken() -> list[tuple[str, str]]:
    """Prompts and answers of people and models."""
    path = DATA / "preference" / "open-instruct" / "eval_instances_tulu_1.jsonl"
    if not path.exists():
        sys.exit(f"no {path}: set HERD_REFERENCE_DATA")
    rows = [json.loads(line) for line in path.open()]
    return [(row["prompt"], given["completion"]) for row in rows for given in row["completions"]]


def sources(characters: int) -> Iterator[str]:
    """Python sources of the installed packages, up to so many characters."""
    for path in sorted(Path(numpy.__file__).resolve().parents[1].rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        characters -= len(text)
        yield text
        if characters < 0:
            return


def tokenizers_trained() -> Iterator[tuple[str, Tokenizer]]:
    said = [text for pair in spoken() for text in pair]
    yield "8,192", train_tokenizer([*said, *sources(4_000_000)], TokenizerConfig(8192, 256, 20_000_000))
    if "--large" not in sys.argv:
        return
    yield "128,256", train_tokenizer(sources(60_000_000), TokenizerConfig(128_256, 256, 60_000_000, fill_with_reserved=True))


def dialogs_of(tokenizer: Tokenizer) -> list[list[Message]]:
    """Distinct texts, each once, said by turns; cut where a dialog has about 300 tokens, and what is left begins the next."""
    texts = list(dict.fromkeys(text for pair in spoken() for text in pair if text))
    dialogs: list[list[Message]] = []
    messages: list[Message] = []
    room = TOKENS - 1
    for ids in tokenizer.encode_batch(texts):
        while ids:
            room -= 5  # header and end
            part = ids[: room if messages else room // 2]
            # Stripped: the template that transformers renders with refuses a message that begins with a blank line.
            messages.append(Message(Role.ASSISTANT if len(messages) % 2 else Role.USER, tokenizer.decode(part).strip()))
            ids, room = ids[len(part) :], room - len(part)
            if room <= 30:
                dialogs.append(messages)
                messages, room = [], TOKENS - 1
    return dialogs


def once(side: str, folder: Path, turn: int, wall: bool) -> dict[str, float]:
    """One side, in a process of its own: seconds of making the encoder, of the first half from a cold start, of the other."""
    clock = time.perf_counter if wall else time.process_time
    tokenizer = Tokenizer.load(folder)
    rows = json.loads((folder / "dialogs.json").read_text())
    if side in (LIBRARY, DOCUMENTS_LIBRARY):
        tokenizer.__dict__["_encode"] = tokenizer._by_library
    if side in (DOCUMENTS, DOCUMENTS_LIBRARY):
        items: list[Any] = list(sources(CORPUS))
        work: Callable[[Any], Any] = tokenizer.encode_batch
    elif side == THEIRS:
        import transformers

        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        theirs.apply_chat_template([{"role": "user", "content": ""}])  # the template is compiled
        items = rows

        def work(some: list[Any]) -> Any:
            return [theirs.apply_chat_template(row) for row in some]

    elif side == ALONE:
        items = [[message["content"] for message in row] for row in rows]

        def work(some: list[Any]) -> Any:
            return tokenizer.encode_flat([text for row in some for text in row])

    else:
        items = [list(parse_messages(row, "dialogs.json")) for row in rows]

        def work(some: list[Any]) -> Any:
            return [(r, sft_mask(r)) for r in render_batch(some, tokenizer)]

    start = clock()
    if side != THEIRS:
        tokenizer.encode("")  # makes the encoder
    making = clock() - start
    middle = len(items) // 2
    halves = [items[:middle], items[middle:]]
    took = []
    for half in halves if turn % 2 else halves[::-1]:
        start = clock()
        for at in range(0, len(half), AT_ONCE):
            work(half[at : at + AT_ONCE])
        took.append((clock() - start) / len(half))
    return {"making": making, "cold": took[0], "steady": took[1]}


def measured(tokenizer: Tokenizer, wall: bool) -> dict[str, Any]:
    dialogs = dialogs_of(tokenizer)
    rendered = render_batch(dialogs, tokenizer)
    texts = [m.content for messages in dialogs for m in messages]
    assert isinstance(tokenizer._encode, FastEncoder)
    both = tokenizer._encode(texts), tokenizer._by_library(texts)
    assert all(numpy.array_equal(ours, theirs) for ours, theirs in zip(*both, strict=True)), "ids differ from the library's"
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder, {"chat_template": chat_template(tokenizer.special_tokens)})
        rows = [[m.to_dict() for m in messages] for messages in dialogs]
        (Path(folder) / "dialogs.json").write_text(json.dumps(rows))
        took: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn in range(TURNS):
            for side in SIDES:
                command = [sys.executable, __file__, "--once", side, folder, str(turn), *(["--wall"] if wall else [])]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                took[side].append(json.loads(done.stdout.splitlines()[-1]))
    characters = sum(map(len, sources(CORPUS)))
    documents = sum(1 for _ in sources(CORPUS))
    rates = {}
    for side, turns in took.items():
        of = {part: statistics.median(turn[part] for turn in turns) for part in ("making", "cold", "steady")}
        if side in (DOCUMENTS, DOCUMENTS_LIBRARY):
            millions = characters / documents / 1e6
            rates[side] = {f"{part}, million characters a second": round(millions / of[part], 2) for part in ("cold", "steady")}
            continue
        with_making = statistics.median(turn["cold"] + turn["making"] / (len(dialogs) / 2) for turn in turns)
        rates[side] = {
            "cold": round(1 / of["cold"]),
            "steady": round(1 / of["steady"]),
            "slowest turn": round(1 / max(max(turn["cold"], turn["steady"]) for turn in turns)),
            "making, seconds": round(of["making"], 3),
            "cold with making": round(1 / with_making),
        }
    return {
        "dialogs": len(dialogs),
        "mean_tokens": round(sum(map(len, rendered)) / len(dialogs), 1),
        "mean_messages": round(sum(map(len, dialogs)) / len(dialogs), 1),
        "distinct_texts": len(set(texts)),
        "texts": len(texts),
        "characters_per_token": round(sum(map(len, texts)) / len(both[0][0]), 2),
        "new_dialogs_per_second": rates,
        "times_as_fast_as_by_tokenizers": round(rates[HERD]["steady"] / rates[LIBRARY]["steady"], 2),
        "times_as_fast_as_transformers": round(rates[HERD]["steady"] / rates[THEIRS]["steady"], 2),
        "wanted": WANTED,
        "enough": min(rates[HERD][part] for part in ("cold", "steady")) >= WANTED,
    }


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core means one core, of the processes started here too
    if "--once" in sys.argv:
        _, _, side, folder, turn, *more = sys.argv
        print(json.dumps(once(side, Path(folder), int(turn), "--wall" in more)))
        return
    results = {}
    for name, tokenizer in tokenizers_trained():
        results[f"{name} entries"] = measured(tokenizer, "--wall" in sys.argv)
        print(name, json.dumps(results[f"{name} entries"], indent=2))
    print(save(__file__, " ".join(["python benchmarks/posttraining/render.py", *sys.argv[1:]]), results))


if __name__ == "__main__":
    main()
