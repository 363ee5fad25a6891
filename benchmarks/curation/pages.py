"""Texts that every installation has, and turns with a peer that runs in an interpreter of its own."""

import argparse
import ast
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("numpy", "scipy", "sympy")  # beside the standard library
_PEERS = "'datatrove>=0.10,<0.11' 'spacy>=3.7,<4' 'xxhash>=3,<4' 'tokenizers<1' 'regex'"
HOW = f"python3.11 -m venv peers && peers/bin/pip install {_PEERS}"


def options(description: str | None, peer_sides: Callable[[], dict[str, Callable[[list[str]], object]]]) -> argparse.Namespace:
    """The command line of a comparison. In the peer's interpreter (``--as-peer``) it serves ``peer_sides`` and ends there."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peer", help=f"interpreter with datatrove: {HOW}")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--as-peer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_peer:
        serve(given.as_peer, peer_sides())
        sys.exit()
    if not given.peer:
        parser.error(f"--peer is needed: {HOW}")
    return given


def docstrings(count: int, shortest: int = 1_500) -> list[str]:
    """Docstrings of the standard library and of numpy, scipy and sympy with at least ``shortest`` characters, sampled evenly."""
    paths = sysconfig.get_paths()
    folders = [Path(paths["stdlib"]), *(Path(paths["purelib"]) / name for name in PACKAGES)]
    found: dict[str, None] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            if {"site-packages", "test", "tests"} & set(file.relative_to(folder).parts):
                continue
            try:
                tree = ast.parse(file.read_text("utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = ast.get_docstring(node) or ""
                    if len(text) >= shortest:
                        found[text] = None
    texts = list(found)
    step = max(len(texts) // count, 1)
    return texts[::step][:count]


def megabytes(texts: list[str]) -> float:
    """Size in 10^6 bytes of UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


class Peer:
    """The same script in another interpreter (``--as-peer FILE``): it reads the texts, then runs the side that it is sent."""

    def __init__(self, python: str, script: str, texts: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "texts.json"
        path.write_text(json.dumps(texts), "utf-8")
        command = [python, script, "--as-peer", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, side: str) -> dict[str, object]:
        """What the side reports; ``seconds`` are of its processor."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(side + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"The peer stopped. Its environment: {HOW}")
        return json.loads(line)

    def close(self) -> None:
        """End the other process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._folder.cleanup()


def serve(path: str, sides: dict[str, Callable[[list[str]], object]]) -> None:
    """The peer's part of :class:`Peer`: sides that take the texts and return what else should be reported."""
    texts = json.loads(Path(path).read_text("utf-8"))
    for line in sys.stdin:
        start = time.process_time()
        facts = sides[line.strip()](texts)
        seconds = time.process_time() - start
        sys.__stdout__.write(json.dumps({"seconds": seconds, "facts": facts}) + "\n")
        sys.__stdout__.flush()


def turns(
    texts: list[str], own: dict[str, Callable[[list[str]], object]], peer: Peer, theirs: list[str], repeats: int = 5
) -> dict[str, dict[str, float]]:
    """Processor seconds of each side over all texts, in turns, after one turn that warms both.

    Processor time, not wall time: other programs on the machine then cost both sides little, and neither uses a second core.

    Returns:
        side -> median, minimum and maximum seconds, and megabytes a second of the median.
    """
    seconds: dict[str, list[float]] = {name: [] for name in (*own, *theirs)}
    for turn in range(repeats + 1):
        for name, call in own.items():
            start = time.process_time()
            call(texts)
            if turn:
                seconds[name].append(time.process_time() - start)
        for name in theirs:
            found = float(peer.run(name)["seconds"])  # type: ignore[arg-type]
            if turn:
                seconds[name].append(found)
    size = megabytes(texts)
    return {
        name: {"median": statistics.median(s), "minimum": min(s), "maximum": max(s), "MB_per_second": size / statistics.median(s)}
        for name, s in seconds.items()
    }
