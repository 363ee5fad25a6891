"""Personal data and secrets out of texts: e-mail and IP addresses, phone numbers, keys (paper, section 3.1.1).

Each kind is found by pattern and then checked (an address must parse, a number must have as many digits as phone numbers
have, a key must look random), so that versions, dates and tables of numbers stay. What is found is replaced by a text of the
user's choice; the defaults are values reserved for documentation, which read like text and are never counted as personal
data themselves. So redacting twice changes nothing.

Phone numbers are found in international form, after a word for "phone", and in national forms that other numbers do not have.
Mail addresses in Chinese, Japanese, Korean or Thai letters are not found, nor are names, postal addresses and identity numbers:
those need a model or a country.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from herd.config.errors import UserError, nearest

_REPLACEMENTS = {
    "email": "email@example.com",  # RFC 2606
    "phone": "+1 202-555-0100",  # North American numbers for fiction: 555-0100 to 555-0199
    "ipv4": "192.0.2.1",  # RFC 5737
    "ipv6": "2001:db8::1",  # RFC 3849
    "secret": "REDACTED",
}


@dataclass(frozen=True)
class PIIConfig:
    """What is redacted and with what."""

    kinds: list[str] = field(default_factory=lambda: list(_REPLACEMENTS))  # email, phone, ipv4, ipv6, secret; [] = nothing
    replacements: dict[str, str] = field(default_factory=dict)  # kind -> text; missing kinds take values kept for documentation
    public_ips_only: bool = True  # 10.0.0.1 and 127.0.0.1 name nobody
    min_entropy: float = 3.0  # bits per character of a key, by the frequencies of its own characters

    def __post_init__(self) -> None:
        for key, names in (("kinds", self.kinds), ("replacements", self.replacements)):
            for kind in names:
                if kind not in _REPLACEMENTS:
                    hint = nearest(kind, _REPLACEMENTS) or f" Choices: {', '.join(_REPLACEMENTS)}."
                    raise UserError(f"pii.{key}: '{kind}' is no kind.{hint}")


# What may not touch a match is said in ASCII: Chinese or Thai text goes on without a space before and after an address.
# Letters of an e-mail address: ASCII, and the alphabets of languages written with spaces, which internationalised addresses may
# have (RFC 6531) and which do not run into the words around them.
_LETTERS = (
    r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"  # Latin
    r"\u0370-\u052f\u0531-\u0587\u05d0-\u05ea\u0620-\u065f\u0671-\u06d3"  # Greek, Cyrillic, Armenian, Hebrew, Arabic
    r"\u0900-\u0963\u0980-\u0d4d"  # Indic
)
# The local part takes what mail servers accept without quotes; the last label of the domain has letters only, or is a coded one.
_EMAIL = re.compile(
    rf"(?<![{_LETTERS}0-9_.+\-])[{_LETTERS}0-9][{_LETTERS}0-9_.+\-!#$%&'*/=?^`{{|}}~]{{0,63}}(?<!\.)@"
    rf"(?:[{_LETTERS}0-9](?:[{_LETTERS}0-9\-]{{0,61}}[{_LETTERS}0-9])?\.)+"
    rf"(?:xn--[A-Za-z0-9\-]{{1,58}}[A-Za-z0-9]|[{_LETTERS}]{{2,24}})"
    rf"(?![{_LETTERS}0-9_])"
)
_DOTS = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}"
# A hyphen before or after it makes it a version ("tool-1.2.3.4"), except between two addresses.
_IPV4 = re.compile(
    rf"(?:(?<![A-Za-z0-9_.\-])|(?<=\.[0-9]-)|(?<=\.[0-9][0-9]-)|(?<=\.[0-9][0-9][0-9]-)){_DOTS}"
    rf"(?![A-Za-z0-9_]|\.[A-Za-z0-9_]|-(?!{_DOTS}(?![A-Za-z0-9_.\-])))"
)
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|(?<=::))(?![A-Za-z0-9_]|:[A-Za-z0-9_:])")
_VERSION = re.compile(r"(?:version|release|\bv|\bver\.?|section)\s*$", re.IGNORECASE)
_PHONE = re.compile(
    r"""(?<![A-Za-z0-9_.+\-/])(?:
        (?P<international>\+\d{1,3}[\ .\-]?(?:\(\d{1,4}\)[\ .\-]?)?\d{1,4}(?:[\ .\-]?\d{2,4}){1,4})
      | (?P<national>(?:1[\ .\-])?(?:\([2-9]\d\d\)\ ?|[2-9]\d\d[.\-])[2-9]\d\d[.\-]\d{4})
    )(?![A-Za-z0-9_\-]|\.\d)""",
    re.VERBOSE,
)
# National forms with spaces, where no other number stands beside them (a table, a dump of bytes): a leading 0, which numbers do
# not have, and three groups (020 7946 0958) or five pairs (06 12 34 56 78), or 3-3-4 digits, which no thousands are grouped by.
_SPACED_PHONE = re.compile(
    r"(?<![A-Za-z0-9_.,+\-/:=#$])(?<![0-9][ \t])(?<![^A-Za-z0-9][0-9A-Fa-f]{2} )(?:"
    r"0[1-9][0-9]{0,3} [0-9]{3,4} [0-9]{3,4}|0[1-9](?: [0-9]{2}){4}|\(0[1-9][0-9]{0,3}\) ?[0-9]{3,4} [0-9]{3,4}"
    r"|[2-9][0-9]{2} [2-9][0-9]{2} [0-9]{4}"
    r")(?![A-Za-z0-9_\-/:=]|[.,][0-9]|[ \t]{1,8}(?:[0-9]|[0-9A-Fa-f]{2}(?![A-Za-z0-9])))"
)
_SPACED_HINT = re.compile(r"[0-9]\)? ?[0-9]{2,4} [0-9]{2,4}")
# Words for "phone": with and without an edge (unspaced scripts, signs).
_CUES: tuple[str, ...] = ("tel", "phone", "telephone", "fax", "mobile", "cell", "call", "whatsapp", "telefon", "t\u00e9l")
_CUES += ("\u0442\u0435\u043b", "\u0442\u0435\u043b\u0435\u0444\u043e\u043d")  # Russian
_BARE_CUES = ("\u260e", "电话", "電話", "手机", "手機", "传真", "傳真", "携帯", "전화", "โทร")
_CUED_PHONE = re.compile(
    rf"(?P<cue>(?:(?<![A-Za-z0-9_])(?:{'|'.join(_CUES)})(?![A-Za-z0-9_])|{'|'.join(_BARE_CUES)})"
    r"(?:号码|番号)?[.:\uff1a]*[ \t]*)"
    r"(?P<number>[(+]?\d[\d()/. \-]{5,20}\d)(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
# Keys of services, known by their beginning, then anything that a word names as a key.
_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w\-]{20,}"  # GitHub, GitLab
    r"|xox[abeoprs]-[A-Za-z0-9\-]{10,}"  # Slack
    r"|AIza[\w\-]{35}"  # Google
    r"|sk-[A-Za-z0-9][\w\-]{19,}|[srp]k_(?:live|test)_[A-Za-z0-9]{16,}"  # OpenAI, Anthropic, Stripe
    r"|hf_[A-Za-z]{30,}|npm_[A-Za-z0-9]{36}|pypi-[\w\-]{50,}"  # hubs of packages and models
    r"|eyJ[\w\-]{10,}\.eyJ[\w\-]{10,}\.[\w\-]{10,}"  # JSON web token
    r")(?![A-Za-z0-9])"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!----)){0,20000}-----END [A-Z ]{0,30}PRIVATE KEY-----"
)
# One that was cut off: its lines of base 64 after the header.
_CUT_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[ \t]*(?:\r?\n[A-Za-z][A-Za-z\-]{2,20}: [^\n]{0,200}){0,4}(?:\r?\n){1,2}"
    r"[A-Za-z0-9+/=]{16,128}(?=[ \t]*(?:\r?\n|\Z))"
    r"(?:\r?\n[A-Za-z0-9+/=]{1,128}(?=[ \t]*(?:\r?\n|\Z))){0,400}"
)
# The password of an address like scheme://user:password@host.
_URL_PASSWORD = re.compile(r"(?<=://)(?P<user>[^\s/:@?#\"'<>]{0,64}):(?P<key>[^\s/@?#\"']{1,128})@(?=[A-Za-z0-9\[])")
# What stands for a password in examples.
_PLACEHOLDER = re.compile(r"(?:[<{$%*\[].*|pass(?:word|wd)?|pwd|pw|secret|your.*|x+|\.+|p)", re.IGNORECASE)
_NAMED_KEY = re.compile(
    r"(?:api[_\-]?key|secret|token|passw(?:or)?d|access[_\-]?key|auth[_\-]?key)[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
    r"(?P<key>[A-Za-z0-9+/_\-=.]{16,512})",
    re.IGNORECASE,
)
# What a text must hold, in lower case, to be searched for a kind: looking for plain strings is many times cheaper.
_PREFIXES = ("akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "aiza", "sk-", "k_live_")
_KEY_HINTS = (*_PREFIXES, "k_test_", "hf_", "npm_", "pypi-", "eyj")
_NAMES = ("key", "secret", "token", "passw")
_VALUE = re.compile(r"[:=]\s{0,3}[\"']?[A-Za-z0-9+/_\-=.]{16}")
_NUMBER = re.compile(r"\d[\d()/. \-]{4,20}\d")
_PHONE_HINT = re.compile(r"\+\d|[)\d][.\- ]?\d{3}[.\-]\d{4}")
_DOTTED = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d")
_COLONS = re.compile(r"::|:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:")


def redact(text: str, config: PIIConfig) -> tuple[str, dict[str, int]]:
    """Replace what personal data and keys there are.

    Returns:
        The text, and how often each kind was replaced (kinds that were not found are left out).
    """
    counts: Counter[str] = Counter()
    for kind in _ORDER:
        if kind in config.kinds:
            text = _REDACT[kind](text, config, counts)
    return text, dict(sorted(counts.items()))


def _replacement(kind: str, config: PIIConfig) -> str:
    return config.replacements.get(kind, _REPLACEMENTS[kind])


def _substitute(
    pattern: re.Pattern[str],
    text: str,
    kind: str,
    config: PIIConfig,
    counts: Counter[str],
    accept: Callable[[re.Match[str]], bool],
    group: str | int = 0,
) -> str:
    """Replace ``group`` of each match that ``accept`` takes."""
    new = _replacement(kind, config)

    def swap(match: re.Match[str]) -> str:
        found = match.group(group)
        if found in (new, _REPLACEMENTS[kind]) or not accept(match):
            return match.group()
        counts[kind] += 1
        start, end = match.start(group) - match.start(), match.end(group) - match.start()
        whole = match.group()
        return whole[:start] + new + whole[end:]

    return pattern.sub(swap, text)


def _email(text: str, config: PIIConfig, counts: Counter[str]) -> str:
    hidden = f"{_replacement('secret', config)}@"  # what is left of user:password@host

    def accept(match: re.Match[str]) -> bool:
        return not match.group().startswith(hidden)

    return _substitute(_EMAIL, text, "email", config, counts, accept) if "@" in text else text


def _ipv4(text: str, config: PIIConfig, counts: Counter[str]) -> str:
    def accept(match: re.Match[str]) -> bool:
        return _address(match.group(), config) and not _VERSION.search(text, max(match.start() - 12, 0), match.start())

    return _substitute(_IPV4, text, "ipv4", config, counts, accept) if _DOTTED.search(text) else text


def _ipv6(text: str, config: PIIConfig, counts: Counter[str]) -> str:
    def accept(match: re.Match[str]) -> bool:
        if match.group().count(":") < 7 and "::" not in match.group():
            return False  # a time of day
        if sum(map(str.isdigit, match.group())) < 2 and match.group() != "::1":
            return False  # names of C++ and Rust ("bad::face")
        return _address(match.group(), config)

    return _substitute(_IPV6, text, "ipv6", config, counts, accept) if _COLONS.search(text) else text


def _address(found: str, config: PIIConfig) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if not config.public_ips_only:
        return True
    if isinstance(address, ipaddress.IPv6Address):
        return address in _UNICAST and address.is_global
    return address.is_global


_UNICAST = ipaddress.IPv6Network("2000::/3")  # every address that is routed


def _phone(text: str, config: PIIConfig, counts: Counter[str]) -> str:
    def accept(match: re.Match[str]) -> bool:
        return 7 <= sum(map(str.isdigit, match.group())) <= 15  # E.164

    def accept_cued(match: re.Match[str]) -> bool:
        return 6 <= sum(map(str.isdigit, match.group("number"))) <= 15

    if _PHONE_HINT.search(text):
        text = _substitute(_PHONE, text, "phone", config, counts, accept)
    if _SPACED_HINT.search(text):
        text = _substitute(_SPACED_PHONE, text, "phone", config, counts, accept)
    lowered = text.lower()
    if any(cue in lowered for cue in (*_CUES, *_BARE_CUES)) and _NUMBER.search(text):
        text = _substitute(_CUED_PHONE, text, "phone", config, counts, accept_cued, "number")
    return text


def _secret(text: str, config: PIIConfig, counts: Counter[str]) -> str:
    lowered = text.lower()

    def random_enough(match: re.Match[str]) -> bool:
        return entropy(match.group()) >= config.min_entropy

    def named(match: re.Match[str]) -> bool:
        key = match.group("key")
        mixed = any(map(str.isdigit, key)) and any(map(str.isalpha, key))
        return mixed and entropy(key) >= config.min_entropy

    if "private key-----" in lowered:
        text = _substitute(_PRIVATE_KEY, text, "secret", config, counts, lambda _: True)
        text = _substitute(_CUT_PRIVATE_KEY, text, "secret", config, counts, lambda _: True)
    if "://" in text and "@" in text:
        text = _substitute(_URL_PASSWORD, text, "secret", config, counts, lambda m: not _PLACEHOLDER.fullmatch(m["key"]), "key")
    if any(hint in lowered for hint in _KEY_HINTS):
        text = _substitute(_KEYS, text, "secret", config, counts, random_enough)
    if any(name in lowered for name in _NAMES) and _VALUE.search(text):
        text = _substitute(_NAMED_KEY, text, "secret", config, counts, named, "key")
    return text


def entropy(text: str) -> float:
    """Shannon entropy in bits per character of the frequencies of a text's own characters."""
    total = len(text)
    return -sum(count / total * math.log2(count / total) for count in Counter(text).values()) if total else 0.0


_ORDER = ("secret", "email", "ipv6", "ipv4", "phone")  # keys first: parts of them look like the rest
_REDACT = {"email": _email, "phone": _phone, "ipv4": _ipv4, "ipv6": _ipv6, "secret": _secret}
