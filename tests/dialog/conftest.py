"""A character-level tokenizer that satisfies the room's protocol: dialog must not know the corpus room."""

import pytest


class CharTokenizer:
    """Ids below 256 are bytes; the special tokens follow, as in a real vocabulary."""

    bos_id, eos_id, pad_id, start_header_id, end_header_id, eom_id, eot_id, python_tag_id = range(256, 264)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, ids) -> str:
        names = {256: "<BOS>", 259: "<H>", 260: "</H>", 261: "<EOM>", 262: "<EOT>", 263: "<PY>"}
        return "".join(names.get(i) or chr(i) for i in ids)


@pytest.fixture
def tokenizer():
    return CharTokenizer()
