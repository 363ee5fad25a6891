"""What class names, ids and tags say about a part of a page, as bits of one integer."""

import functools
import re

from herd.curation.text import word_set

# Group -> pattern over the names' words in lower case ("relatedPosts-list" reads "related posts list").
GROUPS = {
    "navigation": r"\bnav|navbar|\bmenu|menu\b|breadcrumb|crumbs?\b|\bpager\b|paginat|\bpaging|\bskip|toolbar"
    r"|\btabs?\b|sitemap|jump",
    "side": r"sidebar|\baside|\brail\b|widget|\bsecondary\b|complementary|\bside\b",
    "foot": r"footer|\bfoot\b|copyright|colophon|\blegal\b|\bbottom\b|disclaimer",
    "head": r"\bheader|\bmasthead|\btopbar|\btop\b|\bsite\b",
    "hero": r"\bhero|\bbanner|jumbotron|\bintro\b|\blead\b|\bsubtitle|\bdek\b|\bstandfirst|\bexcerpt|\bsummary\b",
    "advert": r"\bads?\b|advert|sponsor|\bpromo|outbrain|taboola|\bdfp\b|\bgoogle|affiliate|\bcta\b|\boffer",
    "social": r"\bshar(e|ing)|social|\bfollow|facebook|twitter|whatsapp|pinterest|linkedin|\blikes?\b|\bvotes?\b|reaction",
    "related": r"related|recommend|similar|\balso\b|\bmore\b|popular|trending|upsell|\bcross|viewed|suggest|\bnext\b"
    r"|\bprev|latest"
    r"|recent|\bother",
    "comment": r"comment|disqus|\brespond\b|repl(y|ies)\b",
    "review": r"review|rating|testimonial|feedback|\bstars?\b|bazaarvoice|yotpo|trustpilot",
    "byline": r"byline|author|\bwriter|\bbio\b|contributor|\bprofile",
    "date": r"\bdate|\btime\b|timestamp|published|posted|updated|modified",
    "meta": r"\bmeta|\btags?\b|\bcategor|\bkeywords?\b|\binfo\b|\blabels?\b|\bbadge|\bstat(s|us)?\b|\bcount",
    "user": r"avatar|\busers?\b|\bmember|signature|\bsig\b|\brank\b|username|\bposter\b|postprofile|karma",
    "form": r"\bforms?\b|login|log in|sign ?in|sign ?up|subscri|newsletter|register|\binput|opt ?in|\bemail|checkout"
    r"|\bquantity|\bqty"
    r"|\bfield",
    "filter": r"filter|\bsort|facet|refine|\bsearch|swatch|option|variant|selector|\bsize\b|\bcolor",
    "modal": r"modal|popup|pop up|overlay|dialog|consent|cookie|gdpr|ccpa|toast|notif|\balert|lightbox|tooltip|dropdown|flyout"
    r"|off ?canvas|drawer",
    "shop": r"\bcart\b|minicart|wishlist|compare|\bbuy\b|add to|\bbag\b|shipping|delivery|payment|stock|availab|\bstore",
    "hidden": r"\bhidden|sr only|visually|screen reader|\bcollapsed?\b|d none|\bhide\b|\binvisible|no ?script|\bmobile\b|\bclone",
    "content": r"content|\barticle|\bpost\b|\bentry|\bstory|\bbody\b|\bmain\b|\btext\b|rich ?text|\brte\b|prose|markdown|wysiwyg"
    r"|\bblog\b|\bcopy\b|paragraph",
    "product": r"product|\bpdp\b|\bsku\b|\bgoods\b",
    "describe": r"descri|\bdetails?\b|spec(s|ification)|feature|highlight|\bbenefit|overview|\babout\b|\bbullet",
    "price": r"price|pricing|\bcost\b|\bsale\b|discount|saving",
    "title": r"title|heading|\bheadline|\bname\b|\bcaption",
    "list": r"\blists?\b|\bgrid|\bcards?\b|\btiles?\b|\bitems?\b|result|collection|catalog|\blisting|teaser|\bfeed\b|\bloop\b",
    "message": r"message|\bmsg|thread|\btopic|\bposts?\b|post ?body|cooked|bbwrapper|\banswer|\bquestion|discussion",
    "quote": r"quote|\bcite|bbcode",
    "code": r"\bcode|highlight|snippet|syntax|\bsource ?code|prism|hljs|pygments",
    "contents": r"\btoc\b|table of|\boutline\b|\bcontents\b|\banchor|permalink|headerlink",
    "faq": r"\bfaqs?\b|accordion|\bpanel|collaps|expand|toggle",
    "media": r"figure|\bimages?\b|\bimg\b|\bmedia|gallery|video|player|\bslide|carousel|swiper|slick|\bicon|thumb"
    r"|photo|credit|caption",
    "link": r"\blinks?\b|\bbtn|button|\bactions?\b|\bcontrols?",
    "place": r"address|contact|phone|location|\bhours|\bmap\b",
}
_TAGS = (
    *("main", "article", "header", "form", "ul", "ol", "table", "section", "figure", "figcaption", "blockquote", "details"),
    *("summary", "noscript", "dl", "h1", "h2", "h3", "h4", "li", "p", "pre", "tr", "div", "body"),
)
BITS = {name: 1 << i for i, name in enumerate([*GROUPS, *(f"<{tag}>" for tag in _TAGS)])}
TAG_BITS = {tag: BITS[f"<{tag}>"] for tag in _TAGS}
_PATTERNS = [(BITS[name], re.compile(pattern)) for name, pattern in GROUPS.items()]
_WORD = re.compile(r"[A-Z]*[a-z]+|[A-Z]+")
_ATTRIBUTE = re.compile(r'\s(class|id|role|itemprop|style|hidden|aria-hidden)="([^"]*)"')
_DIGITS = re.compile(r"\d+")
_NO_DIGITS = str.maketrans("", "", "0123456789")


# The first words of the patterns' expressions of two words; all others are told word by word, since sites share their words.
_FIRST_WORDS = word_set("log sign opt sr screen d off pop add post read rich table source no")


def _variants(pattern: str) -> list[str]:
    """A pattern without its alternatives and optional letters: "shar(e|ing)s?" is "share", "shares", "sharing", "sharings"."""
    for i, letter in enumerate(pattern):
        if letter == "(":
            end = pattern.index(")", i)
            optional = pattern[end + 1 : end + 2] == "?"
            rest = pattern[end + 1 + optional :]
            choices = [*pattern[i + 1 : end].split("|"), *([""] if optional else [])]
            return [found for choice in choices for found in _variants(pattern[:i] + choice + rest)]
        if letter == "?":
            return _variants(pattern[: i - 1] + pattern[i + 1 :]) + _variants(pattern[:i] + pattern[i + 1 :])
    return [pattern]


def _literals() -> tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, int]]:
    """What the patterns say of a single word: bits by the whole word, its beginning, its end, and any part of it."""
    tables: tuple[dict[str, int], ...] = ({}, {}, {}, {})
    for name, pattern in GROUPS.items():
        for alternative in re.split(r"\|(?![^(]*\))", pattern):
            for found in _variants(alternative):
                begins, ends = found.startswith(r"\b"), found.endswith(r"\b")
                literal = found.replace(r"\b", "")
                table = tables[0 if begins and ends else 1 if begins else 2 if ends else 3]
                table[literal] = table.get(literal, 0) | BITS[name]
    return tables[0], tables[1], tables[2], tables[3]


_WHOLE, _START, _END, _PART = _literals()
_SHORTEST, _LONGEST = min(map(len, _PART)), max(map(len, _PART))


@functools.lru_cache(maxsize=200_000)
def _bits_of_word(word: str) -> int:
    bits, size = _WHOLE.get(word, 0), len(word)
    for i in range(1, size + 1):
        bits |= _START.get(word[:i], 0) | _END.get(word[-i:], 0)
    for i in range(size - _SHORTEST + 1):
        for j in range(i + _SHORTEST, min(size, i + _LONGEST) + 1):
            bits |= _PART.get(word[i:j], 0)
    return bits


@functools.lru_cache(maxsize=10_000)
def _bits_of_pair(pair: str) -> int:
    return sum(bit for bit, pattern in _PATTERNS if pattern.search(pair))


@functools.lru_cache(maxsize=200_000)
def _read_name(name: str) -> tuple[int, str, str]:
    """(bits, first word, last word) of one name."""
    words = [word.lower() for word in _WORD.findall(name)]
    bits, before = 0, ""
    for word in words:
        bits |= _bits_of_word(word)
        if before in _FIRST_WORDS:
            bits |= _bits_of_pair(f"{before} {word}")
        before = word
    return bits, words[0] if words else "", before


def _bits(names: str) -> int:
    bits, before = 0, ""
    for name in names[:400].split():
        more, first, last = _read_name(name)
        bits |= more
        if first:
            if before in _FIRST_WORDS:
                bits |= _bits_of_pair(f"{before} {first}")
            before = last
    return bits


@functools.lru_cache(maxsize=50_000)
def read_attributes(attributes: str) -> tuple[int, str]:
    """(bits of its names, its classes without numbers) of one element, from the attributes as the parser writes them."""
    names, classes = [], ""
    for name, value in _ATTRIBUTE.findall(attributes):
        if name == "style":
            if "display:none" in value.replace(" ", "") and "math" not in attributes:
                names.append("hidden")
        elif name in ("hidden", "aria-hidden"):
            names.append("hidden" if value != "false" else "")
        else:
            names.append(value)
            if name == "class":
                classes = value.translate(_NO_DIGITS) if value.isascii() else _DIGITS.sub("", value)
    return _bits(" ".join(names)), classes
