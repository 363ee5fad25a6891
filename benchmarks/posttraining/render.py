"""Rendering, masking and tokenising dialogs of 300 tokens on one core: dialogs a second, and where the time goes.

Dialogs are turns of real prompts and answers of the open-instruct human evaluation (HERD_REFERENCE_DATA), joined until a
tokenizer makes 300 tokens of them; each has other text than the others as far as the text reaches. The tokenizer has 8,192
entries, trained on those texts and on sources of installed packages (4 million characters). `--large` adds one of 128,256
entries from sources alone (minutes of training), with dialogs joined anew until it makes 300 tokens of them.

Sides, all threads of the tokenizers library switched off: herd; herd with the library's own encoding in the place of the
remembered words; and, for orientation, transformers' `apply_chat_template` with the same tokenizer and the template that `herd
export` writes, which gives ids without any mask. The turns render the same dialogs again, so each of their words is known; `new
dialogs` are a fifth that has not been seen, after the other four fifths; `first pass` starts with no word remembered.

    python benchmarks/posttraining/render.py [--large] [--wall]

Times are processor time of the process, which other work on the machine moves less; `--wall` takes the wall clock.
"""

import json
import os
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
import transformers
from measure import save, side_by_side

from herd.corpus import words
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.dialog.hf_template import chat_template
from herd.dialog.masks import sft_mask
from herd.dialog.messages import Message, Role
from herd.dialog.render import Rendered, render_batch

DIALOGS, TOKENS, TURNS = 1000, 300, 7
DATA = Path(os.environ.get("HERD_REFERENCE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
WANTED = 4000  # dialogs a second


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
    """Turns joined until a dialog has about 300 tokens; what goes beyond is cut from its last answer."""
    pairs = spoken()
    ids = tokenizer.encode_batch([text for pair in pairs for text in pair])
    dialogs: list[list[Message]] = []
    at = 0
    while len(dialogs) < DIALOGS:
        messages: list[Message] = []
        room = TOKENS - 1
        while room > 30:
            (question, answer), (asked, answered) = pairs[at % len(pairs)], ids[2 * (at % len(pairs)) : 2 * (at % len(pairs)) + 2]
            at += 1
            room -= min(len(asked), room // 2) + 10  # headers and ends
            if len(asked) > room:
                question = tokenizer.decode(asked[: max(room // 2, 1)])
            if len(answered) > room:
                answer = tokenizer.decode(answered[: max(room, 1)])
            messages += [Message(Role.USER, question), Message(Role.ASSISTANT, answer)]
            room -= len(answered)
        dialogs.append(messages)
    return dialogs


def ours(dialogs: list[list[Message]], tokenizer: Tokenizer) -> list[tuple[Rendered, numpy.ndarray]]:
    return [(r, sft_mask(r)) for r in render_batch(dialogs, tokenizer)]


def theirs(tokenizer: Tokenizer) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder, {"chat_template": chat_template(tokenizer.special_tokens)})
        return transformers.AutoTokenizer.from_pretrained(folder)


def seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def measured(tokenizer: Tokenizer, clock: Callable[[], float]) -> dict[str, Any]:
    dialogs = dialogs_of(tokenizer)
    rendered = render_batch(dialogs, tokenizer)
    tokens = sum(map(len, rendered))
    rows = [[m.to_dict() for m in messages] for messages in dialogs]
    texts = list({m.content for messages in dialogs for m in messages})
    template = theirs(tokenizer)
    by_library, by_words = tokenizer._by_library, tokenizer._by_words
    assert by_words is not None and by_library(texts) == by_words(texts)

    def encoded(encode: Any) -> Callable[[], Any]:
        def call() -> Any:
            tokenizer._by_words = encode
            return ours(dialogs, tokenizer)

        return call

    turns = side_by_side(
        {
            "herd": encoded(by_words),
            "herd, encoding by the library": encoded(by_library),
            "transformers, ids without masks": lambda: [template.apply_chat_template(row) for row in rows],
            "encoding alone": lambda: by_words(texts),
            "encoding alone, by the library": lambda: by_library(texts),
            "masks alone": lambda: [sft_mask(r) for r in rendered],
        },
        repeats=TURNS,
        warmup=1,
        clock=clock,
    )
    fifth = len(dialogs) // 5
    new = 0.0  # seconds for all dialogs, a fifth at a time, once the other four have been rendered
    for at in range(0, len(dialogs), fifth):
        tokenizer._by_words = words.WordEncoder(by_library)
        ours([*dialogs[:at], *dialogs[at + fifth :]], tokenizer)
        new += seconds(lambda part=dialogs[at : at + fifth]: ours(part, tokenizer), clock)  # type: ignore[misc]
    first = [seconds(encoded(words.WordEncoder(by_library)), clock) for _ in range(3)]
    tokenizer._by_words = by_words
    rate = {side: round(len(dialogs) / of["median"]) for side, of in turns.items()}
    rate |= {"herd, first pass": round(len(dialogs) / sorted(first)[1]), "herd, new dialogs": round(len(dialogs) / new)}
    return {
        "dialogs": len(dialogs),
        "mean_tokens": round(tokens / len(dialogs), 1),
        "mean_messages": round(sum(map(len, dialogs)) / len(dialogs), 1),
        "characters_per_token": round(sum(map(len, texts)) / sum(map(len, by_words(texts))), 2),
        "distinct_texts": len(texts),
        "seconds": turns,
        "dialogs_per_second": rate,
        "share_of_encoding": round(turns["encoding alone"]["median"] / turns["herd"]["median"], 3),
        "times_as_fast_as_by_the_library": round(rate["herd"] / rate["herd, encoding by the library"], 2),
        "times_as_fast_as_transformers": round(rate["herd"] / rate["transformers, ids without masks"], 2),
        "enough": rate["herd, new dialogs"] >= WANTED,
    }


def main() -> None:
    clock = time.perf_counter if "--wall" in sys.argv else time.process_time
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core means one core
    words._patterns()  # once a process; some 0.2 s
    results = {}
    for name, tokenizer in tokenizers_trained():
        results[f"{name} entries"] = measured(tokenizer, clock)
        print(name, json.dumps(results[f"{name} entries"]["dialogs_per_second"], indent=2))
    print(save(__file__, "python benchmarks/posttraining/render.py " + " ".join(sys.argv[1:]), {"wanted": WANTED, **results}))


if __name__ == "__main__":
    main()
