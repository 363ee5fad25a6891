"""Peers of the extraction benchmark, run by their own interpreter: a peer's name and a page's path in, a line of JSON out.

Imports nothing of this project. Both peers run with their defaults, but for resiliparse's main-content switch (without it,
it returns the whole page); its `alt_texts` default (on) stays, since that is where it keeps formulas.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

import trafilatura
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding
from resiliparse.parse.html import HTMLTree


def by_resiliparse(raw: bytes) -> str:
    return extract_plain_text(HTMLTree.parse_from_bytes(raw, detect_encoding(raw)), main_content=True)


PEERS = {"trafilatura": lambda raw: trafilatura.extract(raw) or "", "resiliparse": by_resiliparse}


def main() -> None:
    print(json.dumps({name: importlib.metadata.version(name) for name in PEERS}), flush=True)
    for line in sys.stdin:
        name, path = line.strip().split(" ", 1)
        raw = Path(path).read_bytes()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            text = PEERS[name](raw)
        except Exception as error:
            text = f"{type(error).__name__}"
        print(json.dumps({"text": text, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
