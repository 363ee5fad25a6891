"""What a block's text and place say about whether it is content: numbers by name, and the names around it as bits."""

import math
import re
from dataclasses import dataclass

from herd.curation.extraction.blocks import Block, Elements
from herd.curation.extraction.names import BITS
from herd.curation.text import word_set

_PROMPTS = word_set(
    "cookie cookies copyright © subscribe newsletter share follow login signup register read view show load more cart buy shop quick "
    "sold reply replies report like likes joined posts messages registered comment comments back skip menu advertisement sponsored "
    "related previous next filter filters sort stock loading print download edit quote tags posted compare wishlist checkout review "
    "reviews search account sign log click rights reserved privacy terms email facebook twitter instagram helpful rating"
)
_SECTIONS = re.compile(  # headings of what stands beside the content
    r"\b(?:related|you (?:may|might)|also (?:like|bought|viewed)|recommended|more (?:from|in|like|stories|on)|recent(?:ly)?|popular"
    r"|trending|latest|comments?|responses|replies|reviews?|newsletter|subscribe|sign up|follow|share|about the author|sponsored"
    r"|advert\w*|shipping|returns?|delivery|payment|contact|categories|tags|archives?|search|filters?|sort|refine|navigation"
    r"|quick links|customer (?:service|care)|login|log in|cart|similar|next|previous|bought together|top stories|read (?:next|more)"
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
_BOARDS = re.compile(r"xenforo|vbulletin|phpbb|discourse|invision|flarum|mybb|smf\b")
KINDS = ("article", "product", "forum", "list")
_KIND_TYPES = (
    word_set("article newsarticle blogposting techarticle report reportagenewsarticle"),
    word_set("product productgroup offer individualproduct"),
    word_set("discussionforumposting qapage question comment"),
    word_set("itemlist collectionpage offercatalog"),
)
_HEADINGS = BITS["<h1>"] | BITS["<h2>"] | BITS["<h3>"] | BITS["<h4>"]
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
    numbers: list[tuple[float, ...]]  # as in NUMBERS
    near: list[int]  # bits of the block's narrow ancestors
    own: list[int]  # bits of its element and the one around it


def page_kind(html: str) -> int:
    """What the page says that it is, in its linked data, Open Graph type or the name of its forum software."""
    types = {name.lower() for name in (*_TYPES.findall(html), *_ITEM_TYPES.findall(html))}
    graph = _OPEN_GRAPH.search(html)
    of_graph = graph.group(1).lower() if graph else ""
    kind = sum(1 << i for i, words in enumerate(_KIND_TYPES) if types & words)
    if "faqpage" in types and not types & {"discussionforumposting", "qapage"}:
        kind &= ~4
    kind |= 1 if of_graph == "article" else 2 if "product" in of_graph else 0
    return kind | (4 if _BOARDS.search(html[:20_000].lower()) else 0)


def collect(blocks: list[Block], elements: Elements, kind: int) -> Evidence:
    """Measure every block of a page once."""
    tag, parent, own, path = elements.tag, elements.parent, elements.own, elements.path
    characters, linked, counts = elements.characters, elements.linked, elements.blocks
    size = len(tag)
    total = max(characters[0], 1)
    page_links = linked[0] / total
    lowered = [block.text.strip().lower() for block in blocks]

    near = [0] * size
    for e in range(1, size):
        near[e] = near[parent[e]] | (own[e] if characters[e] < NARROW * total else 0)

    same_path: dict[int, int] = {}
    copies: dict[str, int] = {}
    for block, text in zip(blocks, lowered, strict=True):
        p = path[block.element]
        same_path[p] = same_path.get(p, 0) + 1
        copies[text] = copies.get(text, 0) + 1
    siblings: dict[tuple[int, int], int] = {}
    for e in range(1, size):
        key = (parent[e], path[e])
        siblings[key] = siblings.get(key, 0) + 1

    prose = []
    mass = [0] * size
    for block, text in zip(blocks, lowered, strict=True):
        length = len(block.text)
        plain = length - block.linked if length >= 80 and block.linked < 0.4 * length and _SENTENCE.search(text) else 0
        prose.append(plain)
        mass[block.element] += plain
    for e in range(size - 1, 0, -1):
        mass[parent[e]] += mass[e]
    all_prose = mass[0]
    root = 0  # the deepest element that holds most of the prose
    if all_prose > 300:
        for e in range(1, size):
            if parent[e] == root and mass[e] >= 0.7 * all_prose:
                root = e
    inside = [False] * size  # of the root
    distance = [0] * size
    for e in range(root, size):
        if e == root:
            inside[e] = True
        elif e and inside[parent[e]]:
            inside[e] = True
            distance[e] = distance[parent[e]] + 1
    depth = [0] * size
    repeats = [1] * size  # most equal siblings of an element or its ancestors
    for e in range(1, size):
        depth[e] = depth[parent[e]] + 1
        repeats[e] = max(repeats[parent[e]], siblings[parent[e], path[e]])
    within = [i for i, block in enumerate(blocks) if inside[block.element]] if root else []
    first, last = (within[0], within[-1]) if within else (0, len(blocks))

    margin = [False] * size
    for block, text in zip(blocks, lowered, strict=True):
        e = block.element
        if own[e] & _TITLES and len(text) < 80 and _SECTIONS.search(text):
            section = parent[e]
            for _ in range(3):
                if section and characters[section] <= 1.6 * len(text):
                    section = parent[section]
            if section and characters[section] < 0.4 * total:
                margin[section] = True
    for e in range(1, size):
        margin[e] = margin[e] or margin[parent[e]]

    h1 = next((i for i, block in enumerate(blocks) if tag[block.element] == "h1"), -1)
    measured: dict[int, tuple[float, ...]] = {}  # of an element's ancestors: the same for all its blocks
    page_prose, page_length = all_prose / total, math.log1p(total) / 10
    sides = [
        (0.0, math.log1p(len(b.text)), min(b.linked / len(b.text), 1.0), path[b.element], float(p > 0))
        for b, p in zip(blocks, prose, strict=True)
    ]
    missing = (1.0, 0.0, 0.0, -1, 0.0)
    seen: set[str] = set()
    numbers, nears, owns = [], [], []
    so_far = 0
    for i, (block, text) in enumerate(zip(blocks, lowered, strict=True)):
        e = block.element
        length = max(len(text), 1)
        spread = text.split()
        n = len(spread)
        link_share = min(block.linked / length, 1.0)
        prompt = not _PROMPTS.isdisjoint(spread) if n <= 60 else False
        position = so_far / total
        so_far += length
        if e not in measured:
            levels: list[float] = []
            a, level = e, 0
            for wanted in LEVELS:
                while level < wanted and a:
                    a, level = parent[a], level + 1
                c = max(characters[a], 1)
                levels += (linked[a] / c, math.log1p(c / max(counts[a], 1)), c / total, mass[a] / c)
            measured[e] = tuple(levels)
        p, before = path[e], sides[i - 1] if i else missing
        after = sides[i + 1] if i + 1 < len(sides) else missing
        numbers.append(
            (
                n <= 1, 2 <= n <= 3, 4 <= n <= 6, 7 <= n <= 12, 13 <= n <= 25, 26 <= n <= 50, n > 50,
                link_share, link_share > 0.9, block.links > 0, link_share < 0.2 and n > 20, math.log1p(block.links),
                link_share > 0.9 and n > 6,
                math.log1p(len(_SENTENCE.findall(text))) if n > 2 else 0.0, text[-1:] in '.!?:。"”)', prompt, prompt and n <= 6,
                n <= 8 and _DATE.search(text) is not None, n <= 12 and _PRICE.search(text) is not None,
                sum(map(str.isdigit, text)) / length if n <= 12 else 0.0, length > 3 and block.text.isupper(),
                copies[text] > 1, text in seen, position, max(0.0, 1 - position / 0.05), max(0.0, (position - 0.9) / 0.1),
                position * position, math.log(same_path[p]),
                i < h1, h1 < 0, i == h1, 0 <= h1 <= i <= h1 + 5,
                root > 0 and inside[e], root == 0, root > 0 and i < first, root > 0 and i > last,
                math.log(repeats[e]), min(distance[e], 8) / 8, depth[e] / 30, margin[e], tag[e] in _HEADING_TAGS, block.pre,
                block.formula,
                *measured[e],
                before[0], before[1], before[2], before[3] == p, before[4],
                after[0], after[1], after[2], after[3] == p, after[4],
                page_links, page_prose, page_length, page_prose * (n > 25),
            )
        )  # fmt: skip
        seen.add(text)
        nears.append(near[e])
        owns.append(own[e] | own[parent[e]])
    return Evidence(kind, numbers, nears, owns)


_HEADING_TAGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
