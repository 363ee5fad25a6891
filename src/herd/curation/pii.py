"""Personal data and secrets out of texts: e-mail and IP addresses, phone numbers, keys (paper, section 3.1.1).

Each kind is found by pattern and then checked (an address must parse, a number must have as many digits as phone numbers
have, a key must look random), so that versions, dates and tables of numbers stay. What is found is replaced by a text of the
user's choice; the defaults are values reserved for documentation, which read like text and are never counted as personal
data themselves. So redacting twice changes nothing.

Names, postal addresses and identity numbers are not found: they need a model or a country.
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


# The local part takes what mail servers accept without quotes; the last label of the domain has letters only.
_EMAIL = re.compile(
    r"(?<![\w.+\-])[A-Za-z0-9][\w.+\-!#$%&'*/=?^`{|}~]{0,63}(?<!\.)@(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w])"
)
_IPV4 = re.compile(r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?![\w\-]|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION = re.compile(r"(?:version|release|\bv|\bver\.?|section)\s*$", re.IGNORECASE)
_PHONE = re.compile(
    r"""(?<![\w.+\-/])(?:
        (?P<international>\+\d{1,3}[\ .\-]?(?:\(\d{1,4}\)[\ .\-]?)?\d{1,4}(?:[\ .\-]?\d{2,4}){1,4})
      | (?P<national>(?:1[\ .\-])?(?:\([2-9]\d\d\)\ ?|[2-9]\d\d[.\-])[2-9]\d\d[.\-]\d{4})
    )(?![\w\-]|\.\d)""",
    re.VERBOSE,
)
_CUED_PHONE = re.compile(
    r"(?P<cue>(?:\b(?:tel|phone|telephone|fax|mobile|cell|call|whatsapp|telefon|t\u00e9l)\b|\u260e)[.:]*[ \t]*)"
    r"(?P<number>[(+]?\d[\d()/. \-]{5,20}\d)(?!\w)",
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
_PHONE_CUES = ("tel", "phone", "fax", "mobile", "cell", "call", "whatsapp", "t\u00e9l", "\u260e")
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
    return _substitute(_EMAIL, text, "email", config, counts, lambda _: True) if "@" in text else text


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
    lowered = text.lower()
    if any(cue in lowered for cue in _PHONE_CUES) and _NUMBER.search(text):
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
