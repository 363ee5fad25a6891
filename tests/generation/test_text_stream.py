"""Text as it grows: nothing is taken back, whatever the pieces, and a stop text never shows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.corpus.tokenizer import Tokenizer
from herd.generation.text_stream import TextStream


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder / "tokenizer")


@settings(max_examples=30, deadline=None)
@given(
    text=st.text(alphabet="ab é€🙂\n", max_size=12), stops=st.lists(st.text(alphabet="ab €", min_size=1, max_size=3), max_size=2)
)
def test_pieces_add_up_to_the_text_before_the_first_stop(tokenizer, text, stops):
    stream = TextStream(tokenizer, stops)
    pieces = [stream.push(token) for token in tokenizer.encode(text)] + [stream.end()]
    cuts = [text.index(stop) for stop in stops if stop in text]
    assert "".join(pieces) == stream.text == (text[: min(cuts)] if cuts else text)
    assert stream.stopped == bool(cuts)


def test_a_cut_character_shows_at_the_end_only(tokenizer):
    stream = TextStream(tokenizer)
    *most, _ = tokenizer.encode("a🙂")
    assert [stream.push(token) for token in most] == ["a", "", "", ""][: len(most)]
    assert set(stream.end()) == {"\ufffd"}
    assert stream.push(tokenizer.eot_id) == ""


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_become_what_the_library_decodes_them_to(tokenizer, data):
    """Broken characters and special tokens in between, too."""
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.push, tokens), stream.end()]) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert stream.length == stream.read == len(stream.text)
