"""URL normalisation and the newest-wins rule."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.documents import Record, assign_ids
from herd.curation.urls import deduplicate_urls, normalise_url


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


def page(url: str, date: str, content: str) -> Record:
    return Record(url, date, "en", "general", "jsonl", "", "text", content)


def test_newest_version_wins_and_the_ledger_names_it():
    records = [page("http://a.b/x/", "2020-01-01", "old"), page("https://www.a.b/x#top", "2024-01-01", "new"), page("", "", "u")]
    ids = assign_ids(records)
    kept, rows = deduplicate_urls(records, ids)
    assert kept == [1, 2]
    assert [(row.id, row.action, row.rule, row.duplicate_of) for row in rows] == [(ids[0], "dropped", "duplicate_url", ids[1])]


@given(
    st.lists(
        st.builds(
            page,
            st.sampled_from(["", "http://a.b/x", "https://a.b/x/", "http://a.b/y"]),
            st.sampled_from(["", "2020-01-01", "2021-01-01"]),
            st.sampled_from(["one", "two", "three"]),
        ),
        max_size=5,
    )
)
def test_result_is_one_newest_record_per_url_whatever_the_order(records):
    kept, rows = deduplicate_urls(records, assign_ids(records))
    assert len(kept) + len(rows) == len(records)
    survivors = sorted((records[i].url, records[i].date, records[i].content) for i in kept)
    with_url = [normalise_url(records[i].url) for i in kept if records[i].url]
    assert len(with_url) == len(set(with_url)) == len({normalise_url(r.url) for r in records if r.url})
    for i in kept:
        same = [r.date for r in records if records[i].url and normalise_url(r.url) == normalise_url(records[i].url)]
        assert not same or records[i].date == max(same)
    for permuted in itertools.islice(itertools.permutations(records), 1, 7):
        again, _ = deduplicate_urls(permuted, assign_ids(list(permuted)))
        assert sorted((permuted[i].url, permuted[i].date, permuted[i].content) for i in again) == survivors


def test_ids_tell_identical_records_apart():
    ids = assign_ids([page("", "", "same"), page("", "", "same"), page("", "", "other")])
    assert len(set(ids)) == 3
    assert ids[1] == f"{ids[0]}.2"
