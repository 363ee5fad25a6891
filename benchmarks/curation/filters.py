"""The whole filter chain on one core against datatrove's Gopher repetition, Gopher quality, C4 and FineWeb filters.

Run: ``python benchmarks/curation/filters.py --peer peers/bin/python``. datatrove runs its four filters on every document (so do
we: every statistic is measured, whichever rule drops the page), one document after the other, so that its cache gives the words
of one filter to the next where the text is still the same; and each filter alone; and as a pipeline that stops at the first
filter which drops the page. Ours is line rules (C4), all statistics in all readings, and the decision; then the same with dirty
words, divergence and redaction of personal data, which datatrove's chain lacks.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from pages import Peer, docstrings, megabytes, options, turns  # noqa: E402 - found by the line above


def peer_sides():
    """datatrove's filters: all on every document, each alone, and a pipeline that stops at the first that drops."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.text import split_into_parts

    filters = {
        "repetition": GopherRepetitionFilter(),
        "quality": GopherQualityFilter(),
        "c4": C4QualityFilter(),
        "fineweb": FineWebQualityFilter(),
    }

    def keeps(name, document):
        return filters[name].filter(document) is True

    def chain(texts):
        for text in texts:
            for name in filters:
                keeps(name, Document(text=text, id="0"))

    def stopping(texts):
        for text in texts:
            document = Document(text=text, id="0")
            all(keeps(name, document) for name in filters)

    def alone(name):
        def run(texts):
            split_into_parts.cache_clear()
            return [keeps(name, Document(text=text, id="0")) for text in texts]

        return run

    sides = {"datatrove, all filters": chain, "datatrove, until dropped": stopping}
    return sides | {f"datatrove, {name}": alone(name) for name in filters}


def main() -> None:
    given = options(__doc__, peer_sides)
    from measure import save

    from herd.config.loader import compose, load
    from herd.curation.dirty_words import DirtyWords
    from herd.curation.kl import Reference, bucket_counts
    from herd.curation.pii import PIIConfig, redact
    from herd.curation.rules import RulesConfig, edit_lines, first_broken, measure
    from herd.curation.text import tokenise

    texts = docstrings(given.documents)
    presets = {n: load(RulesConfig, compose("curate", [f"rules={n}"]).rules) for n in ("gopher_datatrove", "fineweb", "c4")}
    rules = presets["fineweb"]
    limits = rules.general | presets["c4"].general
    # As long as a usual list of dirty words, but neutral: every 50th word of the texts, which matches far more often.
    vocabulary = sorted({word for text in texts for word in text.lower().split() if word.isalpha()})
    dirty = DirtyWords(vocabulary[::50][:400], "en")
    reference = Reference(sum(bucket_counts(tokenise(text).hashes, 65_536) for text in texts))
    pii = PIIConfig()

    def chain(texts):
        for text in texts:
            edit = edit_lines(text, "en", "c4", rules.coverage)
            first_broken(measure(edit.text, "en") | edit.scores, "en", limits)

    def everything(texts):
        for text in texts:
            text, _ = redact(text, pii)
            edit = edit_lines(text, "en", "c4", rules.coverage)
            first_broken(measure(edit.text, "en", dirty, reference) | edit.scores, "en", limits)

    def only_redact(texts):
        for text in texts:
            redact(text, pii)

    peer = Peer(given.peer, __file__, texts)
    sides = {
        "herd, all filters": chain,
        "herd, with words, divergence, redaction": everything,
        "herd, redaction": only_redact,
    }
    single = [f"datatrove, {name}" for name in ("repetition", "quality", "c4", "fineweb")]
    speed = turns(texts, sides, peer, ["datatrove, all filters", "datatrove, until dropped", *single], given.repeats)
    theirs = {name.split(", ")[1]: peer.run(name)["facts"] for name in single}
    peer.close()

    gopher = presets["gopher_datatrove"].general
    split = {
        "repetition": {k: v for k, v in gopher.items() if "gram" in k or "duplicate" in k},
        "quality": {k: v for k, v in gopher.items() if "gram" not in k and "duplicate" not in k},
        "c4": presets["c4"].general,
        "fineweb": {k: rules.general[k] for k in list(rules.general)[-4:]},
    }
    scores = [measure(text, "en") for text in texts]
    c4 = [edit_lines(text, "en", "c4", rules.coverage).scores for text in texts]
    decided = {
        name: [first_broken(s | (c if name == "c4" else {}), "en", table) is None for s, c in zip(scores, c4, strict=True)]
        for name, table in split.items()
    }
    results = {
        "documents": len(texts),
        "megabytes": megabytes(texts),
        "processor_seconds": speed,
        "ratio_to_datatrove_all_filters": {n: speed["datatrove, all filters"]["median"] / speed[n]["median"] for n in sides},
        "ratio_to_datatrove_until_dropped": {n: speed["datatrove, until dropped"]["median"] / speed[n]["median"] for n in sides},
        "same_decision": {n: sum(a == b for a, b in zip(decided[n], theirs[n], strict=True)) / len(texts) for n in split},
        "kept": {n: {"herd": sum(decided[n]), "datatrove": sum(theirs[n])} for n in split},
    }
    print(results)
    print(save(__file__, "python benchmarks/curation/filters.py --peer peers/bin/python", results))


if __name__ == "__main__":
    main()
