"""Encoding by words gives the library's ids: for any text, for every character that is asked about."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from herd.corpus import words
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

TEXT = "It's the dog's 12345 naïve  ideas:\n\n\tdef f(x):  # DON'T!\r\n   return x\u00a0+ 東京 🙂 ½ ' s 'Re 'LL'd\n"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT * 3], TokenizerConfig(330, 11, 10_000, fill_with_reserved=True))


@pytest.fixture(scope="module")
def by_words(tokenizer):
    assert tokenizer._by_words is not None
    return tokenizer._by_words


ODD = [*"\u00a0\u2028\x1c\x85\u0301\U0001d400\u200d東🙂ſ_é½.'sSa1", "::", "re", "Ll", "Ab", "234"]
pieces = st.sampled_from([*ODD, " ", " ", "  ", "\n", "\r\n", "\t"])


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(st.lists(pieces, max_size=12).map("".join), st.text(max_size=12)), max_size=4))
def test_ids_are_the_librarys(tokenizer, by_words, texts):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert by_words(texts) == tokenizer._by_library(texts)


def test_every_character_is_cut_as_the_library_cuts_it(tokenizer, by_words):
    # One in seven here, for time; all of them were compared when this was written.
    texts = [f"a'{c}b {c}1{c} {c}{c}\n{c}" for first, end in words._ASKED for c in map(chr, range(first, end, 7))]
    assert len(texts) > 9000
    assert by_words(texts) == tokenizer._by_library(texts)


def test_long_and_foreign_texts_keep_their_place(tokenizer, by_words):
    texts = ["one", "x" * 60_000, "\U0001d400 two", "", TEXT * 900, "three"] * 150
    assert by_words(texts[:12]) == tokenizer._by_library(texts[:12])
    assert [len(ids) for ids in by_words(texts[5::6] * 5)] == [len(tokenizer.encode("three"))] * 750


def test_words_are_forgotten_in_the_end(tokenizer, monkeypatch):
    encoder = words.WordEncoder(tokenizer._by_library)
    monkeypatch.setattr(words, "_REMEMBERED", 16)
    assert encoder(["some words"]) == tokenizer._by_library(["some words"])
    assert len(encoder._known) > 1
    assert encoder(["other words"]) == tokenizer._by_library(["other words"])
    assert len(encoder._known) == 1


def test_many_texts_on_few_cores_go_by_words(tokenizer, monkeypatch):
    def refuse(texts):
        raise AssertionError("by words")

    texts = [TEXT] * 1500
    expected = tokenizer._by_library(texts)
    monkeypatch.setattr(words.os, "sched_getaffinity", lambda _: range(2), raising=False)
    assert tokenizer.encode_batch(texts) == expected
    assert pickle.loads(pickle.dumps(tokenizer)).encode_batch(texts) == expected
    monkeypatch.setattr(tokenizer, "_by_words", refuse)
    with pytest.raises(AssertionError, match="by words"):
        tokenizer.encode_batch(texts)
    tokenizer.encode_batch(texts[:5])
    monkeypatch.setattr(words.os, "sched_getaffinity", lambda _: range(64))
    tokenizer.encode_batch(texts)


def test_another_tokenizer_is_left_to_the_library(tokenizer):
    backend = Backend.from_str(tokenizer._backend.to_str())
    assert Tokenizer(backend)._by_words is not None
    backend.normalizer = normalizers.NFC()
    assert Tokenizer(backend)._by_words is None
    backend.normalizer, backend.pre_tokenizer = None, backend.pre_tokenizer[1]
    assert Tokenizer(backend)._by_words is None
