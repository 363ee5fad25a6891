"""URL normalisation and the newest-wins rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.documents import document_id
from herd.curation.urls import newest_of_each, normalise_url, url_hash


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://WWW.Example.com:80/a/?b=2&a=1#frag", "http://example.com/a?a=1&b=2"),
        ("https://example.com/a?utm_source=x&gclid=1", "http://example.com/a"),
        ("https://example.com:8443/", "http://example.com:8443"),
        ("http://example.com/%7Euser/caf%c3%a9", "http://example.com/~user/caf%C3%A9"),
        ("http://example.com/Case", "http://example.com/Case"),
        ("pydoc://json.decoder", "pydoc://json.decoder"),
        ("  not a url ", "not a url"),
        ("http://[broken", "http://[broken"),
    ],
)
def test_normal_form(url, expected):
    assert normalise_url(url) == expected


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(["http://a.b/", "https://www.a.b/x?", "", "ftp://"]))
def test_normalising_twice_changes_nothing(rest, start):
    once = normalise_url(start + rest)
    assert normalise_url(once) == once


def test_hash_follows_the_normal_form_and_is_0_without_address():
    assert url_hash("https://www.a.b/x/#top") == url_hash("http://a.b/x") != url_hash("http://a.b/y")
    assert url_hash("") == url_hash("  ") == 0


@given(st.lists(st.integers(0, 3), max_size=12), st.randoms())
def test_the_preferred_document_stands_for_each_address(urls, random):
    rank = random.sample(range(len(urls)), len(urls))
    stands = newest_of_each(np.array(urls, np.uint64), np.array(rank))
    for i, url in enumerate(urls):
        same = [j for j, other in enumerate(urls) if other == url] if url else [i]
        assert stands[i] == min(same, key=lambda j: rank[j])


def test_ids_tell_identical_records_apart_and_sort():
    ids = [document_id(0xABC, copy) for copy in (1, 2, 10, 100_000)]
    assert ids[0] == "0000000000000abc"
    assert ids == sorted(set(ids))
