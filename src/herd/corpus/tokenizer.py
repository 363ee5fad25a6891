"""Byte-level BPE with the split pattern and special tokens of Llama 3 (section 3.2), on Hugging Face ``tokenizers``.

What encodes is ``fastokens`` (:mod:`herd.corpus.fast_encoder`), with the same ids.

Two rules hold for all text that passes through here: it comes back unchanged from ``decode(encode(text))``, and it can
never become a special token, whatever it spells. Special ids are placed by the caller, by name.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from herd.config.errors import UserError, nearest
from herd.corpus import special_tokens as names
from herd.corpus.fast_encoder import fast_encoder
from herd.runs.atomic import write_json, write_text

# Published with the Llama 3 tokenizer: contractions, words with one leading mark or blank, at most three digits,
# punctuation with a leading blank, line ends, blanks.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_CHUNK = 400_000  # characters encoded at once
MAX_RUN = 25_000  # characters of one run of blanks or non-blanks that the split pattern meets at once
_RUNS = re.compile(rf"(?P<long>\S{{{MAX_RUN}}}(?=\S)|\s{{{MAX_RUN}}}(?=\s))|\S+|\s+")
_BYTES = 256


@dataclass(frozen=True)
class TokenizerConfig:
    """How a tokenizer is trained."""

    vocab_size: int  # entries in all: 256 bytes + merges + special tokens
    special_tokens: int  # special tokens, reserved ones included (Llama 3: 256; at least 11)
    training_characters: int  # characters of training text to learn merges from, at most
    min_frequency: int = 2  # a pair seen less often is not merged
    fill_with_reserved: bool = False  # reach vocab_size with more reserved tokens when the text is too small

    def __post_init__(self) -> None:
        names.special_token_names(self.special_tokens)
        smallest = _BYTES + self.special_tokens
        if self.vocab_size < smallest:
            raise UserError(
                f"tokenizer.vocab_size={self.vocab_size} is too small: {_BYTES} bytes and "
                f"{self.special_tokens} special tokens need {smallest}."
            )
        if self.training_characters < 1 or self.min_frequency < 1:
            raise UserError("tokenizer.training_characters and tokenizer.min_frequency must be 1 or more.")


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: a ``tokenizers.Tokenizer`` with byte-level decoding and the special tokens of Llama 3.

    Raises:
        UserError: a special token of the Llama 3 format is missing.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Text that spells a special token is cut into ordinary pieces. The file does not store this switch.
        backend.encode_special_tokens = True
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in sorted(added.items()) if token.special}
        missing = [name for name in names.REQUIRED if name not in self._special]
        if missing:
            raise UserError(f"The tokenizer has no special token {', '.join(missing)}: it does not follow Llama 3.")
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._special[names.BEGIN_OF_TEXT]
        self.eos_id = self._special[names.END_OF_TEXT]
        self.pad_id = self._special[names.PAD]
        self.start_header_id = self._special[names.START_HEADER]
        self.end_header_id = self._special[names.END_HEADER]
        self.eom_id = self._special[names.END_OF_MESSAGE]
        self.eot_id = self._special[names.END_OF_TURN]
        self.python_tag_id = self._special[names.PYTHON_TAG]
        self.stop_ids = (self.eos_id, self.eom_id, self.eot_id)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[tokenizers.Tokenizer]]:
        return Tokenizer, (self._backend,)  # the encoder is made anew where it is unpickled

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; no special ids, none added. UserError when ``text`` holds a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, the same as :meth:`encode`'s. All cores are used."""
        ids, offsets = self.encode_flat(texts)
        flat = ids.tolist()
        return [flat[a:b] for a, b in pairwise(offsets.tolist())]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in a row, (T,) uint32; those of text i are ``ids[offsets[i]:offsets[i + 1]]``, offsets int64."""
        pieces = [pieces_of(text) for text in texts]
        try:
            ids, offsets = self._encode([piece for parts in pieces for piece in parts])
        except (TypeError, UnicodeEncodeError):
            _refuse_surrogates(texts)
            raise
        return ids, offsets[np.cumsum([0, *map(len, pieces)])]

    @cached_property
    def _encode(self) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
        return fast_encoder(self._backend, _pre_tokenizer()) or self._by_library

    def _by_library(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = np.cumsum([0, *map(len, encoded)])
        return np.fromiter(chain.from_iterable(encoded), np.uint32, int(offsets[-1])), offsets

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ``ids``; bytes that are no valid UTF-8 (a cut character) become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def special(self, name: str) -> int:
        """Id of a special token by name, ``<|eot_id|>`` or short ``eot_id``; UserError with the nearest name."""
        full = name if name.startswith("<|") else f"<|{name}|>"
        if full not in self._special:
            raise UserError(f"No special token '{name}' in this tokenizer.{nearest(full, self._special)}")
        return self._special[full]

    @property
    def special_tokens(self) -> dict[str, int]:
        """Every special token and its id, in order of id."""
        return dict(self._special)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int32: how many bytes of text each id stands for; 0 for special tokens.

        Raises:
            UserError: the vocabulary is not byte-level.
        """
        sizes = np.zeros(self.vocab_size, dtype=np.int32)
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        for token, i in self._backend.get_vocab(with_added_tokens=False).items():
            if not alphabet.issuperset(token):
                raise UserError(f"Token {i} ({token!r}) is not written in the byte-level alphabet: use a byte-level BPE.")
            sizes[i] = len(token)  # one character of the alphabet stands for one byte
        return sizes

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        return {name: byte for byte, name in enumerate(byte_names())}

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes of text that an id stands for; None for a special token."""
        name = self._backend.id_to_token(token)
        if name is None or name in self._special:
            return None
        if all(character in self._byte_of for character in name):
            return bytes(self._byte_of[character] for character in name)
        return str(name).encode()  # added later, and written as it reads: what the library decodes it to

    def save(self, folder: str | Path, more: Mapping[str, object] | None = None) -> None:
        """Write ``tokenizer.json``, ``special_tokens.json`` (name -> id), transformers' ``tokenizer_config.json``.

        Args:
            more: further entries of ``tokenizer_config.json``.
        """
        folder = Path(folder)
        write_text(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        write_json(folder / "special_tokens.json", self._special)
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": names.BEGIN_OF_TEXT,
                "eos_token": names.END_OF_TEXT,
                "pad_token": names.PAD,
                "clean_up_tokenization_spaces": False,
                "model_input_names": ["input_ids", "attention_mask"],
                **(more or {}),
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read ``tokenizer.json`` from ``folder``.

        Raises:
            UserError: the file is missing, damaged, or has not the special tokens of Llama 3.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"No tokenizer at '{path}': run `herd tokenize`, or give the folder that holds tokenizer.json.")
        try:
            text = path.read_text(encoding="utf-8")
            json.loads(text)
        except ValueError as error:
            raise UserError(f"'{path}' is damaged ({error}).") from error
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception for a file of another shape
            raise UserError(f"'{path}' is not a file of the tokenizers library ({error}).") from error
        return cls(backend)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Learn merges from ``texts`` up to ``config.training_characters``; equal texts give an equal ``tokenizer.json``.

    Raises:
        UserError: no text, or too little for ``config.vocab_size`` entries without ``fill_with_reserved``.
    """
    backend = byte_level(models.BPE(ignore_merges=True))
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - config.special_tokens,
        min_frequency=config.min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    read = _Limited(texts, config.training_characters)
    backend.train_from_iterator(read, trainer)
    if not read.characters:
        raise UserError("There is no text to train a tokenizer on.")
    learned = backend.get_vocab_size()
    specials = config.vocab_size - learned
    if specials > config.special_tokens and not config.fill_with_reserved:
        raise UserError(
            f"{read.characters:,} characters of text give only {learned + config.special_tokens:,} of "
            f"tokenizer.vocab_size={config.vocab_size:,} entries: add text, lower vocab_size, or set "
            "tokenizer.fill_with_reserved=true."
        )
    tokenizer = with_special_tokens(backend, specials)
    assert tokenizer.vocab_size == config.vocab_size
    return tokenizer


def byte_names() -> list[str]:
    """The character that stands for each byte in a byte-level model: itself when it is printable, else 256 and on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """A byte-pair model between the split pattern of Llama 3 and the decoding of bytes."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre_tokenizer() -> pre_tokenizers.Sequence:
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def with_special_tokens(backend: tokenizers.Tokenizer, count: int) -> Tokenizer:
    """The tokenizer with ``count`` special tokens of Llama 3.1 after the vocabulary of ``backend``."""
    first = backend.get_vocab_size()
    backend.add_special_tokens(
        [tokenizers.AddedToken(n, special=True, normalized=False) for n in names.special_token_names(count)]
    )
    # For users of transformers, who expect <|begin_of_text|> in front; encode() here adds nothing.
    bos = names.BEGIN_OF_TEXT
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, first)]
    )
    return Tokenizer(backend)


def pieces_of(text: str) -> list[str]:
    """Cut ``text`` where the split pattern would take long: every 400,000 characters and every 25,000 of one run.

    The limits of llama-models' ``Tokenizer.encode``; shorter text is one piece, so its ids are not touched.
    """
    if len(text) <= MAX_RUN:
        return [text] if text else []
    pieces = []
    for first in range(0, len(text), MAX_CHUNK):
        chunk = text[first : first + MAX_CHUNK]
        cuts = [m.end() for m in _RUNS.finditer(chunk) if m.lastgroup == "long"]
        pieces += [chunk[a:b] for a, b in zip([0, *cuts], [*cuts, len(chunk)], strict=True)]
    return pieces


class _Limited:
    """Iterates over pieces of ``texts`` until ``limit`` characters are read, and counts them."""

    def __init__(self, texts: Iterable[str], limit: int) -> None:
        self.texts, self.limit, self.characters = texts, limit, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            for piece in pieces_of(text[: self.limit - self.characters]):
                self.characters += len(piece)
                yield piece
            if self.characters >= self.limit:
                return


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for i, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"Text {i} of {len(texts)} holds half of a surrogate pair at character {error.start}, which is no "
                "Unicode text: repair it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
            ) from error
