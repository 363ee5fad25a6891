"""Settings of the sources. Values live in conf/source/."""

from dataclasses import dataclass, field

from herd.config.errors import UserError
from herd.curation.documents import DOMAINS


def _no_limits() -> dict[str, int]:
    return dict.fromkeys(DOMAINS, 0)


@dataclass(frozen=True)
class SourceConfig:
    """Where raw records come from. `kind` decides which of the other fields matter (see conf/source/)."""

    kind: str = "python"  # python, jsonl, parquet, html, warc or hub
    limit_documents: dict[str, int] = field(default_factory=_no_limits)  # documents per domain, 0 = all; the first in shard order
    limit_characters: dict[str, int] = field(default_factory=_no_limits)  # raw characters per domain, 0 = all

    # python: what this Python installation documents
    general_packages: list[str] = field(default_factory=list)  # packages whose pydoc pages join those of the library
    maths_packages: list[str] = field(default_factory=list)  # packages whose docstrings make the maths domain
    timeout_seconds: int = 300  # a package that needs longer is given up and named in the ledger

    # jsonl, parquet, html, warc: a file or a folder (read recursively); hub: a data set's name
    path: str = ""
    shard_bytes: int = 128_000_000  # larger files are read in parts of about this size, small pages in groups
    max_record_bytes: int = 50_000_000  # a longer line, page or payload is dropped unread: it bounds the memory of a worker
    subset: str = ""  # hub: configuration name, "" = the default one
    split: str = "train"  # hub: which split to read
    revision: str = ""  # hub: commit, tag or branch; "" = the newest commit, which needs the network at every start
    media: str = "text"  # jsonl, parquet, hub: what the text column holds: text, html or code
    text_column: str = "text"
    url_column: str = "url"  # "" or absent in the data: no URL
    date_column: str = "date"
    language_column: str = "language"
    domain_column: str = ""  # "" = every document belongs to `domain`
    group_column: str = ""  # documents of one group stay on one side of the held-out split
    domain: str = "general"  # domain of documents without a value in domain_column
    language: str = "en"  # language of documents without a value in language_column

    def __post_init__(self) -> None:
        for name, limits in (("limit_documents", self.limit_documents), ("limit_characters", self.limit_characters)):
            for domain, limit in limits.items():
                if domain not in DOMAINS:
                    raise UserError(f"source.{name}: '{domain}' is no domain. Choices: {', '.join(DOMAINS)}.")
                if limit < 0:
                    raise UserError(f"source.{name}.{domain} = {limit}: must be 0 (no limit) or more.")
        if self.domain not in DOMAINS:
            raise UserError(f"source.domain: '{self.domain}' is no domain. Choices: {', '.join(DOMAINS)}.")
        if self.media not in ("text", "html", "code"):
            raise UserError(f"source.media: '{self.media}' is not one of text, html, code.")
        if min(self.shard_bytes, self.max_record_bytes, self.timeout_seconds) < 1:
            raise UserError("source: shard_bytes, max_record_bytes and timeout_seconds must be at least 1.")
