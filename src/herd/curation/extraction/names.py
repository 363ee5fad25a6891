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
_NOT_LETTERS = re.compile(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+")
_ATTRIBUTE = re.compile(r'\s(class|id|role|itemprop|style|hidden|aria-hidden)="([^"]*)"')
_DIGITS = re.compile(r"\d+")


# The first words of the patterns' expressions of two words; all others are told word by word, since sites share their words.
_FIRST_WORDS = word_set("log sign opt sr screen d off pop add post read rich table source no")


@functools.lru_cache(maxsize=200_000)
def _bits_of(expression: str) -> int:
    return sum(bit for bit, pattern in _PATTERNS if pattern.search(expression))


def _bits(names: str) -> int:
    bits, before = 0, ""
    for word in _NOT_LETTERS.sub(" ", names[:400]).lower().split():
        bits |= _bits_of(word)
        if before in _FIRST_WORDS:
            bits |= _bits_of(f"{before} {word}")
        before = word
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
                classes = _DIGITS.sub("", value)
    return _bits(" ".join(names)), classes
