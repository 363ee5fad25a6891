"""Meta's tokenizer file against a plain reading of tiktoken's rule."""

import base64
import random
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.corpus.special_tokens import special_token_names
from herd.corpus.tiktoken_file import read_tiktoken
from herd.corpus.tokenizer import Tokenizer

TEXT = "the colour of the house, the colouring of houses; thee and thou: 12345 être 東京 🙂 theth theththe"


def learn(text: str, merges: int) -> dict[bytes, int]:
    """Ranks by plain byte-pair learning over words split at blanks, as tiktoken's files are made."""
    shuffled = list(range(256))
    random.Random(1).shuffle(shuffled)  # the released file has its bytes in another order, too
    ranks = {bytes([byte]): rank for rank, byte in enumerate(shuffled)}
    words = [[bytes([byte]) for byte in f" {word}".encode()] for word in text.split()]
    while len(ranks) < 256 + merges:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks[left + right] = len(ranks)
        words = [joined(word, ranks, limit=len(ranks)) for word in words]
    return ranks


def joined(pieces: list[bytes], ranks: dict[bytes, int], limit: int | None = None) -> list[bytes]:
    """tiktoken's rule, naively: again and again join the neighbours whose union has the lowest rank, the first of equals."""
    pieces = list(pieces)
    while True:
        unions = [(ranks.get(a + b, 10**9), i) for i, (a, b) in enumerate(pairwise(pieces))]
        best = min(unions, default=(10**9, 0))
        if best[0] >= (limit or 10**9):
            return pieces
        pieces[best[1] : best[1] + 2] = [pieces[best[1]] + pieces[best[1] + 1]]


RANKS = learn(TEXT, merges=45)


def write(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return read_tiktoken(write(tmp_path_factory.mktemp("meta") / "tokenizer.model", RANKS))


def plain_ids(word: str, ranks: dict[bytes, int] = RANKS) -> list[int]:
    whole = word.encode()
    if whole in ranks:  # tiktoken looks a piece up as a whole first
        return [ranks[whole]]
    return [ranks[piece] for piece in joined([bytes([byte]) for byte in whole], ranks)]


def test_overlapping_tokens_are_joined_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    """All pairs of five letters, and pairs of pairs: which join comes first decides every word."""
    dice = random.Random(2)
    pairs = ["".join(pair) for pair in product("theou", repeat=2)]
    dice.shuffle(pairs)
    fours = [dice.choice(pairs) + dice.choice(pairs) for _ in range(60)]
    tokens = [bytes([byte]) for byte in range(256)] + [token.encode() for token in dict.fromkeys(pairs + fours)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    tokenizer = read_tiktoken(write(tmp_path / "tokenizer.model", ranks))
    for _ in range(2000):
        word = "".join(dice.choices("theou", k=11))
        assert tokenizer.encode(word) == plain_ids(word, ranks)


# Letters alone: one piece of the split pattern, so that the rule is all that matters.
@given(st.text(alphabet="thecoluringasu", min_size=1, max_size=30))
def test_ids_are_tiktokens(tokenizer: Tokenizer, word: str) -> None:
    assert tokenizer.encode(word) == plain_ids(word)
    assert tokenizer.encode(f" {word}") == plain_ids(f" {word}")


@given(st.text(max_size=60))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_follow_the_ranks(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert list(tokenizer.special_tokens.items()) == [(n, len(RANKS) + i) for i, n in enumerate(special_token_names(256))]
    assert tokenizer.vocab_size == len(RANKS) + 256
    assert tokenizer.encode("<|eot_id|>") != [tokenizer.eot_id]
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00", "no tiktoken file (line 2"),
        (b"IQ== 0\nIg== x\n", "no tiktoken file (line 2"),
        (b"IQ== 0\nIg== 2\n", "ranks have gaps"),
        (b"IQ== 0\nIg== 1\n", "a byte has no token"),
        (b"", "a byte has no token"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_tiktoken(tmp_path / "tokenizer.model")
    assert message in str(error.value)
    with pytest.raises(UserError, match=r"fetch tokenizer\.model"):
        read_tiktoken(tmp_path / "nothing")
