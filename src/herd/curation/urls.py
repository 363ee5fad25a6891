"""URL de-duplication: one record per address, the newest (paper, section 3.1.1)."""

import hashlib
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from herd.curation.documents import Record
from herd.curation.ledger import LedgerRow
from herd.curation.text import word_set

_TRACKING = word_set("gclid fbclid msclkid dclid igshid mc_cid mc_eid yclid ref_src sessionid phpsessid jsessionid")
_PORTS = {"http": 80, "https": 443}


def normalise_url(url: str) -> str:
    """One spelling per address: no fragment, tracking parameters, default port, `www.` or final slash; http equals https.

    Host in lower case, parameters sorted, percent-encoding uniform. What cannot be parsed is returned stripped. Idempotent.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower().rstrip("."), parts.port
    except ValueError:
        return url
    scheme = parts.scheme.lower()
    if not scheme or not host:
        return url
    while host.startswith("www."):
        host = host[4:]
    if port and port != _PORTS.get(scheme):
        host = f"{host}:{port}"
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    pairs = [(k, v) for k, v in pairs if not k.lower().startswith("utm_") and k.lower() not in _TRACKING]
    path = quote(unquote(parts.path, errors="surrogateescape"), safe="/~!$&'()*+,;=:@", errors="surrogateescape").rstrip("/")
    query = urlencode(sorted(pairs), errors="surrogatepass")
    return f"{'http' if scheme == 'https' else scheme}://{host}{path}{'?' + query if query else ''}"


def deduplicate_urls(records: Sequence[Record], ids: Sequence[str]) -> tuple[list[int], list[LedgerRow]]:
    """Keep the newest record of each normalised URL; records without a URL all stay.

    Ties are broken by content hash, then id: a total order, so the input's order does not matter.

    Returns:
        Positions of the records that stay, in input order, and a row for each that goes, naming the one that stays.
    """
    best: dict[str, int] = {}

    def rank(i: int) -> tuple[str, bytes, str]:
        content = records[i].content
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        return records[i].date, hashlib.sha256(raw).digest(), ids[i]

    keys = [normalise_url(record.url) for record in records]
    for i, key in enumerate(keys):
        if key and (key not in best or rank(i) > rank(best[key])):
            best[key] = i
    kept, rows = [], []
    for i, key in enumerate(keys):
        if not key or best[key] == i:
            kept.append(i)
        else:
            newest = best[key]
            detail = f"{key}: {records[newest].date or 'another copy'} replaces {records[i].date or 'a copy without date'}"
            rows.append(LedgerRow(ids[i], "url", "dropped", "duplicate_url", duplicate_of=ids[newest], detail=detail))
    return kept, rows
