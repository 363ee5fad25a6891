"""A character-level tokenizer that satisfies the room's protocol: dialog must not know the corpus room."""

import re

import numpy as np
import pytest

SPECIAL = {
    256: "begin_of_text",
    257: "end_of_text",
    258: "finetune_right_pad_id",
    259: "start_header_id",
    260: "end_header_id",
    261: "eom_id",
    262: "eot_id",
    263: "python_tag",
}
SHORT = {256: "<BOS>", 257: "<EOS>", 259: "<H>", 260: "</H>", 261: "<EOM>", 262: "<EOT>", 263: "<PY>"}


class CharTokenizer:
    """Ids below 256 are bytes; the special tokens follow, as in a real vocabulary."""

    bos_id, eos_id, pad_id, start_header_id, end_header_id, eom_id, eot_id, python_tag_id = range(256, 264)

    def encode_flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [text.encode() for text in texts]
        return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])

    def decode(self, ids) -> str:
        """Text with short names of special tokens."""
        return self._decode(ids, SHORT)

    def written_out(self, ids) -> str:
        """Text with the names that Llama's special tokens have."""
        return self._decode(ids, {i: f"<|{name}|>" for i, name in SPECIAL.items()})

    @staticmethod
    def _decode(ids, names) -> str:
        pieces = (names[i].encode() if i in names else bytes([i]) for i in map(int, ids))
        return b"".join(pieces).decode()

    def ids_of(self, text: str) -> list[int]:
        """What `written_out` reads: names of special tokens become them."""
        ids = {f"<|{name}|>": i for i, name in SPECIAL.items()}
        parts = re.split("(" + "|".join(map(re.escape, ids)) + ")", text)
        return [i for part in parts for i in ([ids[part]] if part in ids else part.encode())]


@pytest.fixture(scope="session")
def tokenizer():
    return CharTokenizer()
