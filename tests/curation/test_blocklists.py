"""Block lists of domains that the user gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.curation.blocklists import Blocked, BlockLists, BlockListsConfig, load_blocklists

LISTS = BlockLists(
    {
        "adult": ["Example.com", "http://foo.org/bar/", "||quux.net^"],
        "pii": ["0.0.0.0 people.net", "*.who.io # a comment", "münchen.de", "example.com"],
    }
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://www.example.com/x?y#z", Blocked("adult", "example.com")),
        ("http://a.b.EXAMPLE.com:8080", Blocked("adult", "example.com")),
        ("http://notexample.com", None),
        ("http://example.com.evil.net", None),
        ("https://foo.org/bar/baz", Blocked("adult", "foo.org/bar")),
        ("https://foo.org/barn", None),
        ("quux.net", Blocked("adult", "quux.net")),
        ("https://people.net/", Blocked("pii", "people.net")),
        ("http://x.who.io", Blocked("pii", "who.io")),
        ("https://xn--mnchen-3ya.de/", Blocked("pii", "xn--mnchen-3ya.de")),
        ("", None),
        ("com", None),
        ("http://[bad", None),
        ("/relative/path", None),
    ],
)
def test_by_hand(url, expected):
    assert LISTS.find(url) == expected


@given(
    st.lists(st.sampled_from(["a.com", "b.a.com", "c.net", "a.com/x", "c.net/x/y"]), max_size=4),
    st.sampled_from(["a.com", "b.a.com", "z.b.a.com", "c.net", "ba.com", "d.c.net"]),
    st.sampled_from(["", "/x", "/x/y", "/xy", "/x/yz"]),
)
def test_equals_a_slow_search(entries, host, path):
    def under(entry: str) -> bool:
        name, _, below = entry.partition("/")
        return (host == name or host.endswith("." + name)) and (not below or (path + "/").startswith(f"/{below}/"))

    found = BlockLists({"harmful": entries}).find(f"https://{host}{path}")
    assert (found is not None) == any(map(under, entries))


def test_files(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# head\nexample.com\n\n", "utf-8")
    lists = load_blocklists(BlockListsConfig(harmful=[str(path)]))
    assert len(lists) == 1
    assert lists.find("http://example.com") == Blocked("harmful", "example.com")
    assert load_blocklists(BlockListsConfig()).find("http://example.com") is None
    path.write_text("# head\n", "utf-8")
    with pytest.raises(UserError, match=r"blocklists\.adult.*holds no domain"):
        load_blocklists(BlockListsConfig(adult=[str(path)]))
