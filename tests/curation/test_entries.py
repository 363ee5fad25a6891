"""Documented functions: summaries, parameters, and that the splits share no answer."""

import pytest

from herd.curation.documents import RawEntry
from herd.curation.entries import Documented, build_entries, documented, parameter_names, summary_and_description
from herd.curation.text import runs_present, word_hashes, word_stream, words


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        ("minimize(fun, x0, args=(), method=None)", ("fun", "x0", "args", "method")),
        ("f(a, /, b=(1, 2), *args, key: int = 0, **rest)", ("a", "b", "args", "key", "rest")),
        ("g(self, sep=',', end=')')", ("sep", "end")),
        ("h(*, x: dict[str, int] = {'a': 1}, y)", ("x", "y")),
        ("absolute(x, /, out=None, *, where=True, casting='same_kind'[, signature])", ("x", "out", "where", "casting")),
        ("f()", ()),
        ("no signature", ()),
    ],
)
def test_parameter_names(signature, names):
    assert parameter_names(signature) == names


@pytest.mark.parametrize(
    ("doc", "summary", "description"),
    [
        (
            "Return the mean.  It is the sum\nover the count.\n\nThe mean is taken over all\nelements.\n\n"
            "Parameters\n----------\na",
            "Return the mean.",
            "The mean is taken over all elements.",
        ),
        ("mean(a, axis=None,\n     dtype=None)\n\nCompute it, e.g. fast.\n\n>>> mean([1])", "Compute it, e.g. fast.", ""),
        ("mean(iterable) -> float\nmean(a, b) -> float\nReturn the mean of things.", "Return the mean of things.", ""),
        ("Do a thing\n\nParameters\n----------\nx : int", "Do a thing", ""),
        (".. deprecated:: 1.0\n\nUse version 1.5 instead.", "Use version 1.5 instead.", ""),
        (":param x: nothing else", "", ""),
        ("", "", ""),
    ],
)
def test_summary_and_description(doc, summary, description):
    assert summary_and_description(doc, "numpy.mean") == (summary, description)


def raw(name: str, doc: str, url: str) -> Documented:
    return documented(RawEntry(url, name.split(".")[0], name, f"{name.split('.')[-1]}(x)", doc))


def test_splits_share_neither_summary_nor_name_nor_quotation():
    home = {"u://train": ("t", "train"), "u://heldout": ("h", "heldout")}
    items = [
        raw("a.one", "Return the first element of all.", "u://train"),
        raw("b.two", "Return the  FIRST element of all.", "u://heldout"),  # the same summary
        raw("a.one", "Quite another summary here.", "u://heldout"),  # the same name
        raw("b.three", "Counts the blue whales.", "u://heldout"),  # quoted in a train document
        raw("b.four", "Counts the green whales.", "u://heldout"),
        raw("b.five", "Lost with its document.", "u://gone"),
        raw("b.six", "Too short.", "u://heldout"),
        documented(RawEntry("u://heldout", "b", "b.seven", "", "Has no signature at all.")),
    ]
    stream = word_stream([word_hashes(words("We read that it counts the blue whales in passing.\n"))])
    entries, out = build_entries(items, home, lambda n, wanted: runs_present(stream, n, wanted))
    assert [(e.name, e.split, e.document_id) for e in entries] == [("a.one", "train", "t"), ("b.four", "heldout", "h")]
    assert out == {"document_dropped": 1, "no_signature": 1, "no_summary": 1, "repeated": 2, "summary_in_train": 1}
    assert entries[0].parameters == ("x",)
