"""Encoding by fastokens gives the library's ids: for any text, every character, tokenizers made to be hard."""

import gzip
import json
import os
import pickle
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers
from tokenizers import Tokenizer as Backend

from herd.corpus.fast_encoder import FastEncoder
from herd.corpus.tokenizer import MAX_RUN, Tokenizer, TokenizerConfig, train_tokenizer

ODD = [*"\u00a0\u2028\x1c\x85\u0301\U0001d400\u200d東🙂ſ_é½.'sSa1", "::", "re", "Ll", "Ab", "234", "<|eot_id|>", "<|"]
pieces = st.sampled_from([*ODD, " ", " ", "  ", "\n", "\r\n", "\t"])


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids by this house and by the library alone."""
    assert isinstance(tokenizer._encode, FastEncoder)
    library = Backend.from_str(tokenizer._backend.to_str())
    library.encode_special_tokens = True
    return tokenizer.encode_batch(texts), [e.ids for e in library.encode_batch(texts, add_special_tokens=False)]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(st.lists(pieces, max_size=12).map("".join), st.text(max_size=12)), max_size=4))
def test_ids_are_the_librarys(tokenizer: Tokenizer, texts: list[str]) -> None:
    ours, theirs = ids_of(tokenizer, texts)
    assert ours == theirs


def test_every_character_is_cut_as_the_library_cuts_it(tokenizer: Tokenizer) -> None:
    # Some here, for time; all of them were compared when this was written (fastokens 0.3.5, tokenizers 0.21.2 and 0.23.3).
    characters = [*range(0, 0x3000, 3), *range(0x3001, 0xD800, 31), *range(0xE000, 0x20000, 17), *range(0x20000, 0x110000, 997)]
    texts = [f"a{c}b 'S{c}{c} 1{c}34 {c}{c}\n{c}'l{c}l" for c in map(chr, characters)]
    assert len(texts) > 9000
    ours, theirs = ids_of(tokenizer, texts)
    assert ours == theirs


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_tokenizers_of_random_words(ignore_merges: bool) -> None:
    """Few letters make tokens that join in many ways; a lost merge leaves tokens that only a whole word becomes."""
    draw = random.Random(6)
    for letters in ("ab", "abcd", "abcé東🙂"):
        words = ["".join(draw.choices(letters, k=draw.randint(1, 14))) for _ in range(80)]
        trained = train_tokenizer(
            [" ".join(draw.choices(words, k=900))], TokenizerConfig(480, 11, 10**5, fill_with_reserved=True)
        )
        description = json.loads(trained._backend.to_str())
        description["model"]["ignore_merges"] = ignore_merges
        for _ in range(3 * ignore_merges):
            description["model"]["merges"].pop(draw.randrange(len(description["model"]["merges"])))
        tokenizer = Tokenizer(Backend.from_str(json.dumps(description)))
        texts = ["".join(draw.choices(letters + " ", k=draw.randint(1, 60))) for _ in range(300)]
        ours, theirs = ids_of(tokenizer, [*texts, *words, *(f" {word}" for word in words)])
        assert ours == theirs


def test_long_words(tokenizer: Tokenizer) -> None:
    # More bytes, and more ids, in a word than two bytes can count; twice, for a word that is remembered.
    texts = [letter * MAX_RUN for letter in ("好", "🙂", "\U0001d518", " ", "a", "!")]
    ours, theirs = ids_of(tokenizer, [*texts, "between", *texts])
    assert ours == theirs
    assert max(map(len, ours)) > 2**16


def test_flat_ids_and_where_each_text_lies(tokenizer: Tokenizer) -> None:
    texts = ["", "one", "x" * (2 * MAX_RUN + 5), "", "two", ""]
    ids, offsets = tokenizer.encode_flat(texts)
    assert ids.dtype == np.uint32 and offsets[0] == 0 and offsets[-1] == len(ids)
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == [tokenizer.encode(text) for text in texts]
    assert [len(part) for part in tokenizer.encode_flat([])] == [0, 1]


def test_other_processes(tokenizer: Tokenizer) -> None:
    text = "What a forked worker reads. " * 200
    ids = tokenizer.encode_batch([text] * 64)
    child = os.fork()
    if child == 0:
        os._exit(0 if tokenizer.encode_batch([text] * 64) == ids else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert pickle.loads(pickle.dumps(tokenizer)).encode_batch([text])[0] == ids[0]


def test_another_tokenizer_is_left_to_the_library(tokenizer: Tokenizer) -> None:
    def changed(change: Callable[[Backend], object]) -> Tokenizer:
        backend = Backend.from_str(tokenizer._backend.to_str())
        change(backend)
        return Tokenizer(backend)

    def without_pattern(backend: Backend) -> None:
        backend.pre_tokenizer = backend.pre_tokenizer[1]

    def without_bytes(backend: Backend) -> None:
        description = json.loads(backend.to_str())["model"]
        vocabulary = {token: i for token, i in description["vocab"].items() if token != "é"}
        backend.model = models.BPE(vocabulary, [])

    changes = (
        lambda backend: None,
        lambda backend: setattr(backend, "normalizer", normalizers.NFC()),
        without_pattern,
        lambda backend: backend.enable_truncation(3),
        lambda backend: backend.add_tokens([AddedToken("word", normalized=False)]),
        lambda backend: setattr(backend.model, "dropout", 0.5),
        lambda backend: setattr(backend.model, "end_of_word_suffix", "</w>"),
        without_bytes,
    )
    assert [isinstance(changed(change)._encode, FastEncoder) for change in changes] == [True] + [False] * 7
    text = "a word and\ta word  more"
    for change in changes[1:4]:
        other = changed(change)
        assert other.encode(text) == other._backend.encode(text, add_special_tokens=False).ids


def test_real_texts(tokenizer: Tokenizer, reference_data: Path) -> None:
    """A part of the data; all of it was compared when this was written."""
    preferences = (reference_data / "preference" / "open-instruct" / "eval_instances_tulu_1.jsonl").read_text().splitlines()[:100]
    pages = [gzip.decompress(p.read_bytes()).decode(errors="ignore") for p in sorted(reference_data.glob("web/*/*.html.gz"))[:12]]
    ours, theirs = ids_of(tokenizer, [*preferences, *(page[:MAX_RUN] for page in pages)])
    assert ours == theirs
