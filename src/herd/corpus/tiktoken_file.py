"""Meta's ``tokenizer.model``: a tiktoken file, a line per token with its bytes in base64 and its rank."""

import base64
import binascii
from pathlib import Path

from tokenizers import models

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer, byte_level, byte_names, with_special_tokens

_SPECIAL_TOKENS = 256  # of llama-models' Tokenizer; they follow the ranks


def read_tiktoken(path: Path) -> Tokenizer:
    """The tokenizer that Llama 3's code makes of the file, with the special tokens of Llama 3.1.

    tiktoken joins, of all neighbouring pieces whose union is a token, the pair whose union has the lowest rank. A byte-pair
    model does so when its merges are all ways to cut a token in two tokens, in the order of the tokens' ranks.

    Raises:
        UserError: the file is missing or of another format (SentencePiece, as before Llama 3), or its ranks have gaps.
    """
    ranks = _read_ranks(Path(path))
    alphabet = byte_names()
    spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        # Of several cuts that of the lowest ranks comes first, as in transformers' converter.
        whole = sorted((ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks)
        merges += [(spelled[left], spelled[right]) for _, _, left, right in whole]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    return with_special_tokens(byte_level(models.BPE(vocabulary, merges, ignore_merges=True)), _SPECIAL_TOKENS)


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Bytes of each token -> its rank, which is its id."""
    if not path.is_file():
        raise UserError(f"No tokenizer at '{path}': fetch tokenizer.model.")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"'{path}' is no tiktoken file (line {number} is not a token in base64 and its rank): the SentencePiece "
                "files of Llama 1 and 2 do not convert."
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(f"'{path}' is damaged: ranks have gaps, or a byte has no token. Fetch it again.")
    return ranks
