"""Helpers of the curation tests."""

import pytest

from herd.curation.config import DedupConfig
from herd.curation.documents import Document
from herd.curation.neardup import minhash
from herd.curation.text import shingles


@pytest.fixture(scope="session")
def make_document():
    """Factory: a document with its shingles and signature."""

    def make(name: str, text: str, *, sign: bool = False, **facts: str) -> Document:
        defaults = {"url": "", "date": "", "language": "en", "domain": "general", "source": "test", "group": "", "media": "text"}
        document = Document(id=name, text=text, **(defaults | facts))
        if sign:
            config = DedupConfig()
            document.shingles = shingles(text, document.language, config.shingle_words)
            document.signature = minhash(document.shingles, config.permutations) if len(document.shingles) else None
        return document

    return make
