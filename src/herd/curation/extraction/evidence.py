"""What a block's text and place say about whether it is content: numbers by name, and the names around it as bits."""

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from herd.curation.extraction.blocks import Block, Elements
from herd.curation.extraction.names import BITS
from herd.curation.text import word_set

_PROMPTS = word_set(
    "cookie cookies copyright © subscribe newsletter share follow login signup register read view show load more cart "
    "buy shop quick "
    "sold reply replies report like likes joined posts messages registered comment comments back skip menu "
    "advertisement sponsored "
    "related previous next filter filters sort stock loading print download edit quote tags posted compare wishlist "
    "checkout review "
    "reviews search account sign log click rights reserved privacy terms email facebook twitter instagram helpful rating"
)
_SECTIONS = re.compile(  # headings of what stands beside the content
    r"\b(?:related|you (?:may|might)|also (?:like|bought|viewed)|recommended|more (?:from|in|like|stories|on)"
    r"|recent(?:ly)?|popular"
    r"|trending|latest|comments?|responses|replies|reviews?|newsletter|subscribe|sign up|follow|share|about the author|sponsored"
    r"|advert\w*|shipping|returns?|delivery|payment|contact|categories|tags|archives?|search|filters?|sort|refine|navigation"
    r"|quick links|customer (?:service|care)|login|log in|cart|similar|next|previous|bought together|top stories"
    r"|read (?:next|more)"
    r"|cookies?|privacy|warranty|questions|don't miss|featured)\b"
)
_SENTENCE = re.compile(r"[.!?:;。！？।](?:\s|$|[\"'”)»])")
_DATE = re.compile(
    r"\b(?:\d{1,2}:\d\d|20[012]\d|\d+ (?:days?|hours?|minutes?|months?|years?|weeks?) ago"
    r"|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]* \d{1,2})\b"
)
_PRICE = re.compile(r"[$€£¥₹]\s?\d|\d\s?(?:€|usd|eur|kr)\b")
_TYPES = re.compile(r'"@type"\s{0,9}:\s{0,9}\[?\s{0,9}"(\w{1,40})"')
_ITEM_TYPES = re.compile(r'itemtype="https?://schema\.org/(\w{1,40})"')
_OPEN_GRAPH = re.compile(r"""og:type["'][^>]{0,80}content=["']([\w.:]{1,40})""")
_BOARDS = ("xenforo", "vbulletin", "phpbb", "discourse", "invision", "flarum", "mybb")
_DIGIT = re.compile(r"\d")
_ENDS = frozenset('.!?:。"”)')
KINDS = ("article", "product", "forum", "list")
_KIND_TYPES = (
    word_set("article newsarticle blogposting techarticle report reportagenewsarticle"),
    word_set("product productgroup offer individualproduct"),
    word_set("discussionforumposting qapage question comment"),
    word_set("itemlist collectionpage offercatalog"),
)
_HEADINGS = BITS["<h1>"] | BITS["<h2>"] | BITS["<h3>"] | BITS["<h4>"]
_HEADING_TAGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_TITLES = _HEADINGS | BITS["title"]
NARROW = 0.5  # of the page's text: names of elements that hold more say what the page is, not what its parts are
LEVELS = (1, 2, 4, 6)  # ancestors that are measured

NUMBERS = (
    "words 1", "words 2-3", "words 4-6", "words 7-12", "words 13-25", "words 26-50", "words 51-",
    "link share", "all links", "has links", "long without links", "number of links", "long link",
    "sentences", "ends as a sentence", "prompt", "short prompt", "short date", "short price", "digits", "upper case",
    "repeated", "repeated before", "position", "at the start", "at the end", "position squared", "blocks of the same kind",
    "before h1", "no h1", "h1", "just after h1", "in the prose", "no prose", "before the prose", "after the prose",
    "equal siblings", "levels to the prose", "depth", "under a heading of the margin", "heading", "code", "formula",
    *(f"ancestor {level} {what}" for level in LEVELS for what in ("link share", "block length", "share", "prose")),
    *(f"{which} {what}" for which in ("before", "after") for what in ("none", "length", "link share", "same kind", "prose")),
    "page link share", "page prose", "page length", "prose of a page with prose",
)  # fmt: skip


@dataclass(slots=True)
class Evidence:
    """Of one page: a row per block."""

    kind: int  # bits of KINDS: what the page's metadata say it is
    numbers: np.ndarray  # (blocks, NUMBERS) float64
    near: list[int]  # bits of the block's narrow ancestors
    own: list[int]  # bits of its element and the one around it


def page_kind(html: str) -> int:
    """What the page says that it is, in its linked data, Open Graph type or the name of its forum software."""
    linked, items, graphs = html.find('"@type"'), html.find("itemtype="), html.find("og:type")  # sooner told than by a pattern
    types = {name.lower() for name in _TYPES.findall(html, linked)} if linked >= 0 else set()
    if items >= 0:
        types.update(name.lower() for name in _ITEM_TYPES.findall(html, items))
    graph = _OPEN_GRAPH.search(html, graphs) if graphs >= 0 else None
    of_graph = graph.group(1).lower() if graph else ""
    kind = sum(1 << i for i, words in enumerate(_KIND_TYPES) if types & words)
    if "faqpage" in types and not types & {"discussionforumposting", "qapage"}:
        kind &= ~4
    kind |= 1 if of_graph == "article" else 2 if "product" in of_graph else 0
    head = html[:20_000].lower()
    return kind | (4 if any(name in head for name in _BOARDS) else 0)


def collect(blocks: list[Block], elements: Elements, kind: int) -> Evidence:
    """Measure every block of a page once."""
    if not blocks:
        return Evidence(kind, np.zeros((0, len(NUMBERS))), [], [])
    lowered = [block.text.strip().lower() for block in blocks]
    length = np.maximum(np.array([len(text) for text in lowered], np.float64), 1)
    linked = np.array([block.linked for block in blocks], np.float64)
    sentences = np.array([len(_SENTENCE.findall(text)) if len(text) > 12 else 0 for text in lowered])
    prose = np.where((length >= 80) & (linked < 0.4 * length) & (sentences > 0), length - linked, 0.0)
    tree = _Tree(blocks, elements, lowered, prose)
    columns = (*_of_text(lowered, blocks, length, linked, sentences), *_of_place(tree, blocks, lowered, length, linked, prose))
    numbers = np.empty((len(blocks), len(columns)))
    for i, column in enumerate(columns):
        numbers[:, i] = column
    return Evidence(
        kind,
        numbers,
        [tree.near[block.element] for block in blocks],
        [elements.own[block.element] | elements.own[elements.parent[block.element]] for block in blocks],
    )


class _Tree:
    """What holds for an element and so for all of its blocks."""

    def __init__(self, blocks: list[Block], elements: Elements, lowered: list[str], prose: np.ndarray) -> None:
        tag, parent, own, path = elements.tag, elements.parent, elements.own, elements.path
        size = len(tag)
        self.total = max(elements.characters[0], 1)
        self.parent = np.array(parent)
        self.path = np.array(path)
        self.characters = np.maximum(np.array(elements.characters, np.float64), 1)
        self.linked = np.array(elements.linked, np.float64)
        self.counts = np.maximum(np.array(elements.blocks, np.float64), 1)
        self.heading = np.array([name in _HEADING_TAGS for name in tag])
        self.first = np.array([name == "h1" for name in tag])

        margin = [False] * size
        for block, text in zip(blocks, lowered, strict=True):
            if len(text) < 80 and own[block.element] & _TITLES and _SECTIONS.search(text):
                section = parent[block.element]
                for _ in range(3):
                    if section and elements.characters[section] <= 1.6 * len(text):
                        section = parent[section]
                if section and elements.characters[section] < 0.4 * self.total:
                    margin[section] = True
        mass = [0.0] * size
        for block, plain in zip(blocks, prose.tolist(), strict=True):
            mass[block.element] += plain
        for e in range(size - 1, 0, -1):
            if mass[e]:
                mass[parent[e]] += mass[e]

        siblings = Counter(zip(parent, path, strict=True))
        alike = [siblings[key] for key in zip(parent, path, strict=True)]
        narrow = NARROW * self.total
        wanted = 0.7 * mass[0] if mass[0] > 300 else math.inf
        root = 0  # the deepest element that holds most of the prose
        near, depth, repeats = [0] * size, [0] * size, [1] * size
        for e in range(1, size):
            p = parent[e]
            near[e] = near[p] | own[e] if elements.characters[e] < narrow else near[p]
            depth[e] = depth[p] + 1
            same = alike[e]
            repeats[e] = same if same > repeats[p] else repeats[p]
            if margin[p]:
                margin[e] = True
            if p == root and mass[e] >= wanted:
                root = e
        inside, distance = [False] * size, [0] * size
        if root:
            inside[root] = True
            for e in range(root + 1, size):
                if inside[parent[e]]:
                    inside[e], distance[e] = True, distance[parent[e]] + 1
        self.near, self.root = near, root
        self.mass, self.depth, self.repeats = np.array(mass), np.array(depth), np.array(repeats)
        self.margin, self.inside, self.distance = np.array(margin), np.array(inside), np.array(distance)


def _of_text(
    lowered: list[str], blocks: list[Block], length: np.ndarray, linked: np.ndarray, sentences: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The first columns of NUMBERS: what the text itself says."""
    n_words, prompts, dates, prices, digits = [], [], [], [], []
    for text in lowered:
        spread = text.split()
        many = len(spread)
        n_words.append(many)
        prompts.append(many <= 60 and not _PROMPTS.isdisjoint(spread))
        count = len(_DIGIT.findall(text)) if many <= 12 else 0
        digits.append(count)
        dates.append(count > 0 and many <= 8 and _DATE.search(text) is not None)
        prices.append(count > 0 and _PRICE.search(text) is not None)
    n, prompt = np.array(n_words), np.array(prompts)
    share = np.minimum(linked / length, 1)
    links = np.array([block.links for block in blocks])
    return (
        n <= 1, (n == 2) | (n == 3), (n >= 4) & (n <= 6), (n >= 7) & (n <= 12), (n >= 13) & (n <= 25), (n >= 26) & (n <= 50),
        n > 50,
        share, share > 0.9, links > 0, (share < 0.2) & (n > 20), np.log1p(links), (share > 0.9) & (n > 6),
        np.log1p(sentences), np.array([text[-1:] in _ENDS for text in lowered]), prompt, prompt & (n <= 6),
        np.array(dates), np.array(prices), np.array(digits) / length,
        np.array([len(block.text) > 3 and block.text.isupper() for block in blocks]),
    )  # fmt: skip


def _of_place(
    tree: _Tree, blocks: list[Block], lowered: list[str], length: np.ndarray, linked: np.ndarray, prose: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The other columns of NUMBERS: where a block stands, what stands around it, and the page."""
    size = len(blocks)
    holders = np.array([block.element for block in blocks])
    place = np.arange(size)
    copies: dict[str, int] = {}
    before = []
    for text in lowered:
        seen = copies.get(text, 0)
        before.append(seen > 0)
        copies[text] = seen + 1
    repeated = np.array([copies[text] > 1 for text in lowered])
    position = np.concatenate(([0.0], np.cumsum(length)[:-1])) / tree.total
    path = tree.path[holders]
    same = np.bincount(path)[path]
    first = next((i for i, h1 in enumerate(tree.first[holders]) if h1), -1)
    inside = tree.inside[holders]
    within = np.flatnonzero(inside)
    start, end = (within[0], within[-1]) if len(within) else (0, size)
    rooted = np.full(size, tree.root > 0)
    columns = [
        repeated, np.array(before), position, np.maximum(0, 1 - position / 0.05), np.maximum(0, (position - 0.9) / 0.1),
        position**2,
        np.log(same),
        place < first, np.full(size, first < 0), place == first, (place >= first) & (place <= first + 5) & (first >= 0),
        inside, ~rooted, rooted & (place < start), rooted & (place > end),
        np.log(tree.repeats[holders]), np.minimum(tree.distance[holders], 8) / 8, tree.depth[holders] / 30, tree.margin[holders],
        tree.heading[holders], np.array([block.pre for block in blocks]), np.array([block.formula for block in blocks]),
    ]  # fmt: skip
    above, level = holders, 0
    for wanted in LEVELS:
        while level < wanted:
            above, level = tree.parent[above], level + 1
        inner = tree.characters[above]
        columns += [
            tree.linked[above] / inner,
            np.log1p(inner / tree.counts[above]),
            inner / tree.total,
            tree.mass[above] / inner,
        ]
    log_length, share, is_prose = np.log1p(length), np.minimum(linked / length, 1), prose > 0
    for shift in (1, -1):
        none = place == (0 if shift == 1 else size - 1)
        there = ~none
        other = (place - shift) % size
        columns += [none, *(values[other] * there for values in (log_length, share))]
        columns += [(path[other] == path) & there, is_prose[other] & there]
    page_prose = tree.mass[0] / tree.total
    page = (tree.linked[0] / tree.total, page_prose, math.log1p(tree.total) / 10)
    columns += [*(np.full(size, value) for value in page), page_prose * (np.array([text.count(" ") for text in lowered]) > 24)]
    return tuple(columns)
