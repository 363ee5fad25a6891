"""Held-out rows: all of the text, once, each document by itself; and the small parts of packing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.corpus.packing import IGNORE, PackedRows, best_fit, evaluation_rows
from herd.corpus.shards import TokenShards

MakeShards = Callable[..., TokenShards]
PAD = 59_999
check = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12),
    seq_len=st.integers(1, 30),
    batch=st.integers(1, 5),
)
@check
def test_every_held_out_token_is_scored_once(make_shards: MakeShards, lengths: list[int], seq_len: int, batch: int) -> None:
    source = make_shards(split="heldout", code=lengths).source("heldout", "code")
    batches = list(evaluation_rows(source, seq_len, rows_per_batch=batch))
    assert [len(rows) for rows in batches[:-1]] == [batch] * (len(batches) - 1)
    firsts = np.cumsum([0, *lengths[:-1]])
    scored: list[int] = []
    for rows in batches:
        assert rows.sources == ("code",) * len(rows)
        for tokens, targets, positions, parts in zip(
            rows.tokens.tolist(), rows.targets.tolist(), rows.positions.tolist(), rows.lengths, strict=True
        ):
            assert sum(parts) == seq_len
            assert positions == [place for n in parts for place in range(n)]
            at = 0
            for n in parts:
                part, asked = tokens[at : at + n], targets[at : at + n]
                at += n
                if part[0] == PAD:
                    assert at == seq_len, "padding is the row's last part"
                    assert set(part) == {PAD}
                    assert set(asked) == {IGNORE}
                    continue
                # Ids count up within a document, so a part of one document is a range, and its targets the range after.
                assert part == list(range(part[0], part[0] + n))
                assert asked == list(range(part[0] + 1, part[0] + n + 1))
                document = int(np.searchsorted(firsts, part[0], side="right")) - 1
                assert (part[0] - firsts[document]) % seq_len == 0, "windows count from the document's start"
                scored += asked
    assert sorted(scored) == sorted(set(range(sum(lengths))) - set(firsts.tolist()))
    assert sum(sum(rows.bytes) for rows in batches) == len(scored)
    fill = sorted(sum(t != IGNORE for t in row) for rows in batches for row in rows.targets.tolist())
    assert sum(fill[:2]) > seq_len or len(fill) < 2, "no two rows could have been one"


def test_a_limit_takes_a_fixed_fair_sample(make_shards: MakeShards) -> None:
    source = make_shards(split="heldout", code=[33] * 400 + [3_201]).source("heldout", "code")

    def scored(limit: int | None) -> list[int]:
        return [t for rows in evaluation_rows(source, 32, limit) for t in rows.targets.flatten().tolist() if t != IGNORE]

    few, again, more, every = scored(800), scored(800), scored(8_000), scored(None)
    assert few == again
    assert len(few) == 800
    assert set(few) < set(more) < set(every)
    assert len(every) == 400 * 32 + 3_200
    # One document in 401 has a fifth of the text, and about a fifth of the sample.
    assert 0.1 < np.mean(np.array(more) >= 400 * 33) < 0.3
    assert len(scored(1)) == 32  # never nothing
    with pytest.raises(UserError, match="1 or more"):
        next(evaluation_rows(source, 32, 0))


@given(sizes=st.lists(st.integers(1, 20), max_size=60))
@check
def test_best_fit_places_each_item_once_and_wastes_little(sizes: list[int]) -> None:
    bins = best_fit(sizes, 20)
    assert sorted(item for row in bins for item in row) == list(range(len(sizes)))
    fill = [sum(sizes[item] for item in row) for row in bins]
    assert all(f <= 20 for f in fill)
    assert sum(sorted(fill)[:2]) > 20 or len(fill) < 2, "no two bins could have been one"


def test_split_moves_and_counts() -> None:
    tokens = torch.arange(12).reshape(3, 4)
    targets = torch.where(tokens % 4 == 3, IGNORE, tokens + 1)
    rows = PackedRows(tokens, targets, tokens % 4, ((4,), (1, 3), (4,)), ("a", "b", "c"), (3, 3, 3))
    two, one = rows.split(2)
    assert (len(two), len(one)) == (2, 1)
    assert two.lengths == ((4,), (1, 3))
    assert one.tokens.tolist() == [[8, 9, 10, 11]]
    assert one.sources == ("c",)
    assert one.bytes == (3,)
    assert rows.target_count == 9
    assert two.tokens.data_ptr() == rows.tokens.data_ptr()
    moved = rows.to("meta")
    assert moved.positions.device.type == "meta"
    assert moved.lengths == rows.lengths
