"""Answers kept as they are drawn, so that a stage that is killed half way draws no more than what is missing.

They go to a file of the stage's scratch folder, a prompt a line, as soon as the last sample of the prompt has ended. What a kill
leaves is then whole lines and perhaps the beginning of one, which lacks its end; a line that a disk has damaged is told by its
checksum. Both are drawn again.

A sample is a function of model, prompt, settings and index, by rounding at most also of its company
(:mod:`herd.generation.engine`): so what is drawn after a kill, in less company, and what was kept before are together what one
undisturbed run draws, to the bit where a row's bits do not depend on the number of rows, as on the CPUs at hand with one thread.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from herd.generation.choose import digest_of
from herd.generation.sampler import Asked, Done, Sample, Sampler
from herd.runs.atomic import sha256_json, write_bytes

KEPT = "answers"  # folder of the scratch folder
_CHECK = 16  # hex digits of a line's SHA-256, before its JSON


@dataclass(frozen=True)
class KeptSampler:
    """A sampler that keeps what another one draws, and draws nothing twice: equal prompts have the same samples.

    Args:
        opened: gives what draws; asked only when something is missing.
        folder: where it is kept.
        writer: what tells the sampler's model from the others whose answers are kept in this folder. In the scratch folder of a
            stage, whose address holds those of its inputs, the label of an input does.
    """

    opened: Callable[[], Sampler]
    folder: Path
    writer: str

    def draw(self, asked: Asked, done: Done | None = None) -> list[list[Sample]]:
        """As the sampler does; says on stderr how many prompts had their answers from before."""
        prompts = asked.prompts
        key = sha256_json([self.writer, asdict(asked.config), asked.samples, sorted(asked.stops)])
        file = _File(self.folder / f"answers-{key[:16]}.jsonl")
        found = file.read()
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(digest_of(prompt), []).append(place)
        missing = [digest for digest in places if digest not in found]
        before = sum(len(places[digest]) for digest in places if digest in found)
        if before or file.damaged:
            print(_told(self.writer, before, len(prompts), file.damaged), file=sys.stderr, flush=True)

        def tell(digest: str) -> None:
            if done is not None:
                for place in places[digest]:
                    done(place, found[digest])

        for digest in places:
            if digest in found:
                tell(digest)
        if missing:
            with file.appended() as append:

                def keep(number: int, samples: list[Sample]) -> None:
                    append(missing[number], samples)
                    found[missing[number]] = samples
                    tell(missing[number])

                self.opened().draw(replace(asked, prompts=[prompts[places[digest][0]] for digest in missing]), keep)
        return [found[digest_of(prompt)] for prompt in prompts]


def _told(writer: str, before: int, prompts: int, damaged: int) -> str:
    kept = f"the answers to {before:,} of {prompts:,} prompts are there from before"
    lost = f"; {damaged:,} damaged line{'s' if damaged > 1 else ''} dropped, to be drawn again" if damaged else ""
    return f"  sampling ({writer}): {kept}{lost}"


@dataclass
class _File:
    """Samples of one model under one set of settings, by the digests of their prompts."""

    path: Path
    damaged: int = field(default=0, init=False)  # whole lines whose checksum is wrong

    def read(self) -> dict[str, list[Sample]]:
        """What is there; the beginning of a line that a kill has left at the end is cut off."""
        if not self.path.exists():
            return {}
        with open(self.path, "r+b") as file:
            lines = file.read().split(b"\n")
            if lines[-1]:
                file.seek(-len(lines[-1]), 2)
                file.truncate()
        found: dict[str, list[Sample]] = {}
        good: list[bytes] = []
        for line in lines[:-1]:
            check, _, text = line.partition(b" ")
            if check.decode("ascii", "replace") != _checksum(text):
                self.damaged += 1
                continue
            good.append(line)
            digest, samples = json.loads(text)
            found[digest] = [Sample(*sample) for sample in samples]
        if self.damaged:  # told once
            write_bytes(self.path, b"".join(line + b"\n" for line in good))
        return found

    @contextmanager
    def appended(self) -> Iterator[Callable[[str, list[Sample]], Any]]:
        """A function that adds the samples of a prompt. Once it returns, they outlast this process (not a cut of power)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:

            def append(digest: str, samples: list[Sample]) -> None:
                values = [[list(s.tokens), s.finished, s.logprob] for s in samples]
                text = json.dumps([digest, values], separators=(",", ":")).encode("ascii")
                file.write(b"%s %s\n" % (_checksum(text).encode("ascii"), text))
                file.flush()

            yield append


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_CHECK]
