"""Counting the words of a list that the user gives. The words here are neutral."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.curation.dirty_words import DirtyWords, load_dirty_words
from herd.curation.text import tokenise


def count(entries: list[str], text: str, language: str = "en") -> int:
    return DirtyWords(entries, language).count(tokenise(text, language))


def test_whole_words_in_any_case_and_phrases():
    entries = ["mud", "Dirty Sock", "rust"]
    assert count(entries, "Mud, mud! A muddy dirty\nsock in a dirty-sock drawer; dirty old sock.") == 4
    assert count(entries, "") == count([], "mud") == 0


def test_a_place_counts_once_and_scripts_without_spaces_match_anywhere():
    assert count(["mud", "mud pie", "pie"], "a mud pie") == 2  # at "mud" and at "pie"
    assert count(["泥"], "泥土和泥水", "zh") == 2
    assert count(["泥土"], "泥土和泥水", "zh") == 1


@given(
    st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), max_size=4)
)
def test_equals_a_slow_count(items, entries):
    expected = sum(any(items[i : i + len(entry)] == entry for entry in entries) for i in range(len(items)))
    assert count([" ".join(entry) for entry in entries], " ".join(items)) == expected


def test_lists_are_files(tmp_path):
    path = tmp_path / "en.txt"
    path.write_text("# neutral\n\nmud\n", "utf-8")
    assert len(load_dirty_words({"en": str(path)})["en"]) == 1
    path.write_text("# nothing\n", "utf-8")
    with pytest.raises(UserError, match=r"dirty_words\.files\.en.*holds no word"):
        load_dirty_words({"en": str(path)})
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_dirty_words({"en": str(path)})
    with pytest.raises(UserError, match="cannot read"):
        load_dirty_words({"en": str(tmp_path / "none.txt")})
