"""Dates of documents, however a source writes them -> one form in UTC, in which the newest can be told."""

import datetime
import email.utils
import re

_NUMBER = re.compile(r"[+-]?\d{9,19}(?:\.\d+)?")
_YEAR_OR_MONTH = re.compile(r"(\d{4})(?:-(\d\d))?")
_DIGITS = re.compile(r"\d{14}")  # of CDX indexes
_ISO = re.compile(r"\d{4}-?(?:W?\d)")
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # in a second
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def canonical(text: str) -> str:
    """``2024-05-06T07:08:09Z``, with a fraction only where there is one; "" where the text names no moment.

    Read are ISO 8601 (also a date, a month or a year alone: its beginning), RFC 2822, the 14 digits of web archives, and seconds,
    milli-, micro- or nanoseconds since 1970, told apart by their size. Without a time zone it is UTC. Idempotent.
    """
    found = _parsed(" ".join(text.split())[:80])
    if found is None:
        return ""
    try:
        found = found.replace(tzinfo=found.tzinfo or datetime.UTC).astimezone(datetime.UTC)
    except (OverflowError, ValueError):  # the first or last hours of the calendar, moved out of it
        return ""
    return found.replace(tzinfo=None).isoformat() + "Z"


def moment(value: int, unit: str) -> str:
    """Text of a moment that is a number since 1970, in days ("D"), "s", "ms", "us" or "ns", which :func:`canonical` reads.

    One outside of the years 1 to 9999 is no date: its number and unit, so that the ledger can name it.
    """
    try:
        if unit == "D":
            return (_EPOCH + datetime.timedelta(days=value)).date().isoformat()
        micros = value * 10**6 // _UNITS[unit]
        return (_EPOCH + datetime.timedelta(microseconds=micros)).replace(tzinfo=None).isoformat() + "Z"
    except OverflowError:
        return f"{value} {unit} since 1970"


def microseconds(date: str) -> int:
    """Since 1970, of a date in canonical form; the smallest number of 64 bits for "", which is older than all."""
    if not date:
        return -(2**63)
    return (datetime.datetime.fromisoformat(date) - _EPOCH) // datetime.timedelta(microseconds=1)


def _parsed(text: str) -> datetime.datetime | None:
    try:
        if _DIGITS.fullmatch(text):
            return datetime.datetime.strptime(text, "%Y%m%d%H%M%S")
        if _NUMBER.fullmatch(text):
            return _since_1970(text)
        if short := _YEAR_OR_MONTH.fullmatch(text):
            return datetime.datetime(int(short.group(1)), int(short.group(2) or 1), 1)
        if _ISO.match(text):
            return datetime.datetime.fromisoformat(re.sub(r" ?(?:utc|gmt|z)$", "+00:00", text, flags=re.IGNORECASE))
        return email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _since_1970(text: str) -> datetime.datetime | None:
    whole, _, fraction = text.partition(".")
    digits = len(whole.lstrip("+-"))
    exponent = next((e for e, most in ((0, 11), (3, 14), (6, 17), (9, 19)) if digits <= most))
    micros = int(whole) * 10**6 // 10**exponent + (int((fraction + "000000")[:6]) if exponent == 0 else 0)
    return _EPOCH + datetime.timedelta(microseconds=micros)
