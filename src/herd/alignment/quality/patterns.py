"""What a cleaning rule looks for in an answer: emoji, exclamation marks, openings, phrases, or a pattern of the user's.

Code is not looked into: what stands between back quotes is no prose, and `!=` is no excitement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from herd.config.errors import UserError
from herd.config.registry import Registry

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)

# Unicode 16 emoji-data.txt: characters that are shown as pictures (Emoji_Presentation), and whole picture blocks. Any other
# character becomes a picture by the variation selector FE0F, a digit by the keycap 20E3.
_PICTURES = (
    "\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1\u26aa\u26ab\u26bd\u26be\u26c4"
    "\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e\u2753-\u2755\u2757\u2795-\u2797"
    "\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a\U0001f1e6-\U0001f1ff\U0001f201"
    "\U0001f21a\U0001f22f\U0001f232-\U0001f236\U0001f238-\U0001f23a\U0001f250\U0001f251\U0001f300-\U0001f64f"
    "\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7eb\U0001f7f0\U0001f900-\U0001f9ff\U0001fa70-\U0001faff"
)
_TAIL = "[\ufe0f\u200d\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
_ONE = f"(?:[{_PICTURES}]|[^\\W_]\ufe0f?\u20e3|[^\\w\\s]\ufe0f)"
# A run of pictures counts once, with the spaces before it.
EMOJI = re.compile(f"[ \\t]*{_ONE}(?:{_TAIL}|[ \\t]*{_ONE})*")
# Not `!=`, `![image]`, `!r` or `!important`.
EXCLAMATION = re.compile(r"!+(?:[ \t]*!+)*(?![=\[\w(])")

# (phrases, pattern) -> what is looked for.
PATTERNS: Registry[Callable[[Sequence[str], str], re.Pattern[str]]] = Registry("kind of cleaning rule")


@PATTERNS.register("emoji")
def emoji(phrases: Sequence[str], pattern: str) -> re.Pattern[str]:
    """Runs of emoji."""
    return EMOJI


@PATTERNS.register("exclamation")
def exclamation(phrases: Sequence[str], pattern: str) -> re.Pattern[str]:
    """Runs of exclamation marks."""
    return EXCLAMATION


@PATTERNS.register("opening")
def opening(phrases: Sequence[str], pattern: str) -> re.Pattern[str]:
    """One or more of the phrases at the very beginning, with the marks and spaces behind them."""
    return re.compile(rf"\A\s*(?:(?:{_any_of(phrases)})(?!\w)[\s,.!:;–—-]*)+", re.IGNORECASE)


@PATTERNS.register("phrase")
def phrase(phrases: Sequence[str], pattern: str) -> re.Pattern[str]:
    """One of the phrases anywhere, in whole words, with the exclamation marks or full stop behind it."""
    return re.compile(rf"[ \t]*(?<!\w)(?:{_any_of(phrases)})(?!\w)[!.]*", re.IGNORECASE)


@PATTERNS.register("regex")
def regex(phrases: Sequence[str], pattern: str) -> re.Pattern[str]:
    """A pattern of the user's."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"cleaning: the pattern {pattern!r} is no regular expression ({error}).") from None


def _any_of(phrases: Sequence[str]) -> str:
    """The longest first; any spaces for a space, and both apostrophes for either."""
    longest = sorted(phrases, key=lambda text: (-len(text), text))
    return "|".join(re.sub(r"['’]", "['’]", r"\s+".join(map(re.escape, text.split()))) for text in longest)


def spans(pattern: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Where the pattern stands in the prose of a text, from left to right; empty matches do not count."""
    prose = _CODE.sub(lambda code: "\0" * len(code[0]), text)
    return [found.span() for found in pattern.finditer(prose) if found.end() > found.start()]


def replaced(text: str, places: Sequence[tuple[int, int]], replacement: str) -> str:
    """The text with `replacement` in each of the places, without blanks at its ends."""
    parts, at = [], 0
    for start, end in places:
        parts += [text[at:start], replacement]
        at = end
    return "".join([*parts, text[at:]]).strip()
