"""HTML extraction: what stays, what goes, and that no page can break it."""

import gzip
import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.config import ExtractionConfig
from herd.curation.extraction import MATHS_AND_CODE, Refusal, cost, decode, extract_html

CONFIG = ExtractionConfig()

ARTICLE = """<!DOCTYPE html><html lang="en"><head><title>T</title><style>p {color: red}</style></head><body>
<header class="masthead"><a href="/">Home</a></header>
<nav><ul><li><a href="/a">First section</a></li><li><a href="/b">Second section</a></li></ul></nav>
<div class="cookie-banner">We use cookies.</div>
<article><h1>On   tides</h1>
<p>The moon pulls the <b>near</b>
side more than the <a href="x">far side</a>.</p>
<pre>for i in range(3):
    print(i)

done()</pre>
<p>Energy: <math alttext="E=mc^2"><mi>E</mi></math>, area <img class="tex" alt="\\pi r^2" src="a.png"></p>
<table><tr><td>spring</td><td>high</td></tr><tr><td>neap</td><td>low</td></tr></table>
<p>a<br>b</p><form><input value="q"><p>Subscribe now</p></form></article>
<ul><li><a href="/1">Ten other stories</a></li><li><a href="/2">You may like these</a></li></ul>
<footer>Copyright</footer><script>var x = "text";</script></body></html>"""


def test_article_keeps_content_and_structure():
    assert extract_html(ARTICLE, CONFIG) == (
        "On tides\n\nThe moon pulls the near side more than the far side.\n\n"
        "for i in range(3):\n    print(i)\n\ndone()\n\nEnergy: $E=mc^2$, area \\pi r^2\n\n"
        "spring\thigh\nneap\tlow\n\na\nb\n"
    )


def test_links_in_a_row_are_navigation_but_a_single_linked_line_stays():
    links = "".join(f'<p><a href="/{i}">Some other page number {i}</a></p>' for i in range(5))
    page = f"<body><p>Some words of text here.</p>{links}<p>More words.</p><p><a href='/x'>A linked sentence.</a></p></body>"
    assert extract_html(page, CONFIG) == "Some words of text here.\n\nMore words.\n\nA linked sentence.\n"


def test_a_form_around_the_whole_page_is_not_boilerplate():
    page = "<body><form><p>All of this shop's text stands inside one form, as some frameworks do.</p></form></body>"
    assert "stands inside one form" in extract_html(page, CONFIG)


def test_pydoc_page_keeps_indented_code_lines():
    html = (
        '<html><body><p><span class="code">Summary&nbsp;of&nbsp;it.<br>\n&nbsp;<br>\n&nbsp;&nbsp;&nbsp;&nbsp;&gt;&gt;&gt;'
        "&nbsp;f(1)<br>\n&nbsp;&nbsp;&nbsp;&nbsp;2</span></p></body></html>"
    )
    assert extract_html(html, CONFIG) == "Summary of it.\n\n    >>> f(1)\n    2\n"


@pytest.mark.parametrize(
    ("page", "rule"),
    [
        (b"<html><body><p>cut off in the mid", "truncated_page"),
        (b"", "no_text"),
        (b"<html><body><nav>only <a href=x>links</a></nav></body></html>", "no_text"),
        (b"<body>" + b"<div>" * 100_000 + b"deep" + b"</div>" * 100_000 + b"</body>", "nested_too_deep"),
        (b"<body><p>" + b"<b>" * 100_000 + b"</body>", "nested_too_deep"),
        (b"<p>" + b"x" * 10_000_001, "page_too_large"),
        (b"\x00\xff\xfe\x81\x8d" * 400, "undecodable"),
        (b'<meta charset="klingon-8"><p>caf\xe9</p>', "unknown_encoding"),
    ],
)
def test_hostile_pages_are_refused_with_a_reason(page, rule):
    result = extract_html(page, CONFIG)
    assert isinstance(result, Refusal)
    assert result.rule == rule
    assert result.detail


def test_refusals_carry_value_and_limit():
    result = extract_html("<p>" * 10 + "<div>" * 30, ExtractionConfig(max_depth=20))
    assert (result.score, result.threshold) == (21, 20)


def test_encodings():
    assert extract_html("<p>naïve café</p>".encode("cp1252"), CONFIG) == "naïve café\n"
    declared = '<meta charset="iso-8859-2"><p>žluťoučký kůň</p>'
    assert "žluťoučký kůň" in extract_html(declared.encode("iso-8859-2"), CONFIG)
    assert extract_html("<p>日本語</p>".encode("utf-16"), CONFIG) == "日本語\n"
    assert extract_html(b"<p>a\x00b</p>", CONFIG) == "ab\n"
    assert isinstance(decode("café au lait".encode("latin-1"), 0.01, declared=False), Refusal)


def test_cost_counts_open_elements():
    assert cost("<div><span>a</span><br><img></div><p>x<p>y<div></div>", 100, 10**6).depth == 2
    assert cost("<div></x>" * 50, 100, 10**6).depth == 50  # an end tag that ends nothing does not make a page shallower
    assert cost("<b><i></b>" * 50, 100, 10**6).depth == 51


@given(st.text("<>/pdivabr='\" &;!-\n", max_size=200))
def test_any_markup_gives_text_or_a_reason(soup):
    result = extract_html(soup, CONFIG)
    assert isinstance(result, Refusal) or (result.strip() and result.endswith("\n"))


@given(st.binary(max_size=200))
def test_any_bytes_give_text_or_a_reason(raw):
    result = extract_html(raw, CONFIG)
    assert isinstance(result, Refusal) or "\x00" not in result


def test_extraction_quality_on_real_pages(reference_data):
    """Word overlap with what people kept, by page type: floors just under what was measured (0.92, 0.92 and 0.80)."""
    folder = reference_data / "web" / "wcxb-dev-sample"
    if not folder.is_dir():
        pytest.skip(f"no web pages at {folder}")
    scores: dict[str, list[float]] = {}
    for row in map(json.loads, (folder / "ground_truth.jsonl").read_text(encoding="utf-8").splitlines()):
        result = extract_html(gzip.decompress((folder / f"{row['id']}.html.gz").read_bytes()), CONFIG)
        found = Counter(re.findall(r"\w+", result.lower())) if isinstance(result, str) else Counter()
        truth = Counter(re.findall(r"\w+", row["main_content"].lower()))
        shared = (found & truth).total()
        f1 = 2 * shared / max(found.total() + truth.total(), 1)
        scores.setdefault(row["page_type"], []).append(f1)
        scores.setdefault("all", []).append(f1)
    mean = {kind: sum(values) / len(values) for kind, values in scores.items()}
    assert mean["article"] > 0.90
    assert mean["documentation"] > 0.90
    assert mean["all"] > 0.79
