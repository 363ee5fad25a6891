"""The mixture against a plain re-telling of its rules, and the properties that training relies on."""

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.corpus.epochs import DocumentStream
from herd.corpus.mixture import MixConfig, Mixture, Phase, Quota, check_repetition
from herd.corpus.packing import IGNORE, PackedRows
from herd.corpus.permutation import Permutation
from herd.corpus.shards import TokenShards

PAPER = {"general": 0.50, "maths": 0.25, "code": 0.17, "multilingual": 0.08}
MakeShards = Callable[..., TokenShards]
Row = tuple[str, list[int], list[int], list[int]]  # source, tokens, targets, document lengths
LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=8)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, list[int]], list[Phase]]:
    """Document lengths of up to three domains, and one to three phases over them."""
    domains = {name: draw(LENGTHS) for name in ("general", "maths", "code")[: draw(st.integers(1, 3))]}
    phases = []
    for _ in range(draw(st.integers(1, 3))):
        shares = draw(st.lists(st.integers(0, 5), min_size=len(domains), max_size=len(domains)).filter(any))
        weights = {name: share / sum(shares) for name, share in zip(domains, shares, strict=True)}
        phases.append(Phase(rows=draw(st.integers(0, 20)), seq_len=draw(st.integers(1, 24)), weights=weights))
    return domains, phases


def check(count: int) -> settings:
    fixtures = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, suppress_health_check=fixtures)


def equal(a: PackedRows, b: PackedRows) -> bool:
    tensors = ((a.tokens, b.tokens), (a.targets, b.targets), (a.positions, b.positions))
    same = (a.lengths, a.sources, a.bytes) == (b.lengths, b.sources, b.bytes)
    return same and all(torch.equal(x, y) for x, y in tensors)


def order_of(stream: DocumentStream, epoch: int) -> list[int]:
    """All documents of an epoch in order, block after block."""
    return [d for number in stream.layout(epoch)[0].tolist() for d in stream.block(epoch, number).documents.tolist()]


def retold(shards: TokenShards, phases: list[Phase], seed: int) -> list[list[Row]]:
    """Every row of every phase, by walking the sources token by token; rows of one epoch and phase are then dealt shuffled."""

    def walk(domain: str) -> Iterator[tuple[int, int, bool]]:
        source = shards.source("train", domain)
        stream, epoch = DocumentStream(source, seed), 0
        while True:
            for document in order_of(stream, epoch):
                ids = source.tokens[source.offsets[document] : source.offsets[document + 1]].tolist()
                for place, token in enumerate(ids):
                    yield token, ids[place + 1] if place + 1 < len(ids) else IGNORE, place == 0
            epoch += 1

    walkers = {domain: walk(domain) for domain in shards.domains("train")}
    walked = dict.fromkeys(walkers, 0)
    told = []
    for number, phase in enumerate(phases):
        quota = Quota(phase.weights)
        names = [quota.names[int(i)] for i in np.diff(quota.counts(np.arange(phase.rows + 1)), axis=0).argmax(axis=1)]
        dealt: dict[str, list[Row]] = {name: [] for name in names}
        filled: dict[tuple[str, int], list[int]] = {}  # by which epoch
        for name in names:
            taken = [next(walkers[name]) for _ in range(phase.seq_len)]
            begins = [i for i, (_, _, first) in enumerate(taken) if first or i == 0]
            lengths = [b - a for a, b in pairwise([*begins, phase.seq_len])]
            epoch_tokens, place = len(shards.source("train", name).tokens), walked[name]
            walked[name] += phase.seq_len
            if place // epoch_tokens == (walked[name] - 1) // epoch_tokens:
                filled.setdefault((name, place // epoch_tokens), []).append(len(dealt[name]))
            dealt[name].append((name, [t[0] for t in taken], [t[1] for t in taken], lengths))
        for (name, epoch), rows in filled.items():
            order = Permutation.of(len(rows), seed, "row order", name, number, epoch)(np.arange(len(rows))).tolist()
            for row, moved in zip(rows, [dealt[name][rows[i]] for i in order], strict=True):
                dealt[name][row] = moved
        queues = {name: iter(rows) for name, rows in dealt.items()}
        told.append([next(queues[name]) for name in names])
    return told


@given(world=worlds(), seed=st.integers(0, 3))
@check(50)
def test_rows_are_what_the_rules_say(make_shards: MakeShards, world: tuple[dict[str, list[int]], list[Phase]], seed: int) -> None:
    domains, phases = world
    shards = make_shards(**domains)
    mixture = Mixture(shards, "train", phases, seed)
    for number, expected in enumerate(retold(shards, phases, seed)):
        rows = mixture.rows(number, 0, len(expected))
        assert rows.sources == tuple(name for name, *_ in expected)
        assert rows.tokens.tolist() == [tokens for _, tokens, _, _ in expected]
        assert rows.targets.tolist() == [targets for _, _, targets, _ in expected]
        assert rows.lengths == tuple(tuple(lengths) for *_, lengths in expected)
        positions = [[place for n in lengths for place in range(n)] for *_, lengths in expected]
        assert rows.positions.tolist() == positions
        assert rows.bytes == tuple(sum(t != IGNORE for t in targets) for _, _, targets, _ in expected)
        assert rows.target_count == sum(rows.bytes)


@given(world=worlds(), data=st.data())
@check(40)
def test_any_rows_in_any_order_are_the_same(
    make_shards: MakeShards, world: tuple[dict[str, list[int]], list[Phase]], data: st.DataObject
) -> None:
    domains, phases = world
    shards = make_shards(**domains)
    whole = [Mixture(shards, "train", phases, 5).rows(p, 0, phase.rows) for p, phase in enumerate(phases)]
    other = Mixture(shards, "train", phases, 5)
    for _ in range(8):
        p = data.draw(st.integers(0, len(phases) - 1))
        first = data.draw(st.integers(0, phases[p].rows))
        count = data.draw(st.integers(0, phases[p].rows - first))
        rows = other.rows(p, first, count)
        assert rows.tokens.shape == (count, phases[p].seq_len)
        one_by_one = whole[p].split(1)[first : first + count]
        assert all(equal(a, b) for a, b in zip(rows.split(1), one_by_one, strict=True))


@given(lengths=LENGTHS, seq_lens=st.lists(st.integers(1, 20), min_size=1, max_size=3), seed=st.integers(0, 5))
@check(40)
def test_every_token_is_read_once_before_any_is_read_again(
    make_shards: MakeShards, lengths: list[int], seq_lens: list[int], seed: int
) -> None:
    total = sum(lengths)
    phases = [Phase(rows=2 * total // t + 1, seq_len=t, weights={"code": 1.0}) for t in seq_lens]
    mixture = Mixture(make_shards(code=lengths), "train", phases, seed)
    read = [mixture.rows(p, 0, phase.rows) for p, phase in enumerate(phases)]
    tokens = torch.cat([rows.tokens.flatten() for rows in read]).tolist()
    targets = torch.cat([rows.targets.flatten() for rows in read]).tolist()
    lasts = set((np.cumsum(lengths) - 1).tolist())
    for epoch in range(len(tokens) // total):
        part = slice(epoch * total, (epoch + 1) * total)
        assert sorted(tokens[part]) == list(range(total))
        # Ids count up within a document: the target is the next id, and none after the document's last.
        pairs = zip(tokens[part], targets[part], strict=True)
        assert all(target == (IGNORE if token in lasts else token + 1) for token, target in pairs)
    assert mixture.epochs()["code"] == pytest.approx(len(tokens) / total)
    assert mixture.tokens() == {"code": len(tokens)}


def test_epochs_have_different_orders_and_seeds_do_too(make_shards: MakeShards) -> None:
    shards = make_shards(general=[3] * 50, maths=[3] * 50)
    source = shards.source("train", "general")
    stream = DocumentStream(source, 0)
    others = [DocumentStream(source, 1), DocumentStream(shards.source("train", "maths"), 0), DocumentStream(source, 0, 20, 10)]
    orders = [order_of(stream, 0), order_of(stream, 1), *(order_of(other, 0) for other in others)]
    assert len({tuple(order) for order in orders}) == 5
    assert all(sorted(order) == list(range(50)) for order in orders)
    for epoch in (5, 0, 3, 0):  # whatever was read in between
        assert order_of(stream, epoch) == order_of(DocumentStream(source, 0), epoch)


def test_document_order_is_the_one_of_earlier_versions(make_shards: MakeShards) -> None:
    """A change here silently changes every training run: raise the version of the stages that read a mixture."""
    source = make_shards(general=[2] * 8).source("train", "general")
    assert order_of(DocumentStream(source, 0), 0) == [2, 6, 0, 7, 4, 3, 1, 5]
    assert order_of(DocumentStream(source, 0, whole=7, block=3), 0) == [6, 7, 4, 5, 3, 2, 1, 0]


@given(lengths=LENGTHS, block=st.integers(1, 5), data=st.data())
@check(40)
def test_a_source_in_blocks_is_read_like_a_list(
    make_shards: MakeShards, lengths: list[int], block: int, data: st.DataObject
) -> None:
    """Memory bounded by two blocks, the stream that of all documents in the order that the blocks tell."""
    source = make_shards(code=lengths).source("train", "code")
    stream = DocumentStream(source, 4, whole=0, block=block)
    epochs = [order_of(stream, epoch) for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(len(lengths)))
        blocks = [d // block for d in order]
        assert len([1 for a, b in pairwise(blocks) if a != b]) == len(set(blocks)) - 1  # each block in one piece
    tokens = [i for order in epochs for d in order for i in range(int(source.offsets[d]), int(source.offsets[d + 1]))]
    owners = [d for order in epochs for d in order for _ in range(lengths[d])]
    starts = [i == 0 for order in epochs for d in order for i in range(lengths[d])]
    count = data.draw(st.integers(1, 2 * sum(lengths)))
    firsts = data.draw(st.lists(st.integers(0, len(tokens) - count), min_size=1, max_size=4))
    spans = DocumentStream(source, 4, whole=0, block=block).read(np.array(firsts), count)
    for row, first in enumerate(firsts):
        assert spans.tokens[row].tolist() == tokens[first : first + count]
        assert spans.documents[row].tolist() == owners[first : first + count]
        assert spans.starts[row].tolist() == starts[first : first + count]


def test_deal_of_the_paper_mix() -> None:
    dealt = np.diff(Quota(PAPER).counts(np.arange(25)), axis=0)
    names = [Quota(PAPER).names[int(i)] for i in dealt.argmax(axis=1)]
    assert (dealt.sum(axis=1) == 1).all()
    assert Counter(names) == {"general": 12, "maths": 6, "code": 4, "multilingual": 2}
    assert names[:8] == ["general", "maths", "general", "code", "general", "maths", "general", "multilingual"]


@pytest.mark.parametrize(
    "weights",
    [PAPER, {"general": 0.35, "maths": 0.355, "code": 0.239, "multilingual": 0.056}, {"a": 0.9, "b": 0.1}, {"a": 1.0}],
)
def test_shares_are_met_at_every_point(weights: dict[str, float]) -> None:
    quota = Quota(weights)
    rows = np.arange(200_001)
    shares = np.array([weights[name] for name in quota.names])
    counts = quota.counts(rows)
    assert (counts.sum(axis=1) == rows).all()
    assert np.abs(counts - rows[:, None] * shares).max() <= (1.0 if weights is PAPER else 1.1)
    # And as far out as the paper's run goes: 16M-token batches of 8,192 tokens, 1.2M steps.
    far = np.arange(2_400_000_000, 2_400_000_100)
    assert np.abs(quota.counts(far) - far[:, None] * shares).max() <= 2.0


@given(shares=st.lists(st.integers(0, 20), min_size=1, max_size=7).filter(any))
@check(60)
def test_any_shares_are_met_closely(shares: list[int]) -> None:
    weights = {f"s{i}": share / sum(shares) for i, share in enumerate(shares)}
    quota = Quota(weights)
    rows = np.arange(500)
    counts = quota.counts(rows)
    assert ((np.diff(counts, axis=0) == 1).sum(axis=1) == 1).all()
    assert all(weights[name] > 0 for name in quota.names)
    assert np.abs(counts - rows[:, None] * np.array([weights[n] for n in quota.names])).max() <= 2.0


@given(world=worlds())
@check(40)
def test_documents_of_names_each_part(make_shards: MakeShards, world: tuple[dict[str, list[int]], list[Phase]]) -> None:
    domains, phases = world
    mixture = Mixture(make_shards(**domains), "train", phases, 1)
    for p, phase in enumerate(phases):
        rows, named = mixture.rows(p, 0, phase.rows), mixture.documents_of(p, 0, phase.rows)
        for tokens, lengths, source, names in zip(rows.tokens.tolist(), rows.lengths, rows.sources, named, strict=True):
            begins = np.cumsum([0, *lengths[:-1]])
            owner = np.searchsorted(np.cumsum(domains[source]), [tokens[b] for b in begins], side="right")
            assert names == tuple(f"{source}/{i}" for i in owner)
        if phase.rows:
            assert mixture.documents_of(p, phase.rows - 1, 1) == named[-1:]


def test_a_mixture_travels_to_another_process_by_path(make_shards: MakeShards) -> None:
    shards = make_shards(general=[20] * 2000)
    mixture = Mixture(shards, "train", [Phase(100, 16, {"general": 1.0})], 0)
    expected = mixture.rows(0, 10, 20)
    content = pickle.dumps(mixture)
    assert len(content) < 4_000  # not the 80,000 bytes of tokens
    assert equal(pickle.loads(content).rows(0, 10, 20), expected)


def test_bad_mixes_are_refused(make_shards: MakeShards) -> None:
    shards = make_shards(general=[5, 5], maths=[5])
    cases = [
        ({"general": 0.5, "maths": 0.4}, "sum to 0.9, not 1"),
        ({"general": 1.5, "maths": -0.5}, "0 or more"),
        ({"general": float("nan")}, "0 or more"),
        ({"general": 0.5, "math": 0.5}, "weight to 'math'.* Did you mean 'maths'.* It has general, maths"),
        ({"general": 0.5, "code": 0.5}, "weight to 'code'.* no tokens in split 'train'"),
    ]
    for weights, message in cases:
        with pytest.raises(UserError, match=message):
            Mixture(shards, "train", [Phase(1, 4, weights)], 0)
    with pytest.raises(UserError, match=r"No split 'trains'.* Did you mean 'train'"):
        Mixture(shards, "trains", [], 0)
    with pytest.raises(UserError, match="1 token or more"):
        Phase(1, 0, {"general": 1.0})
    with pytest.raises(UserError, match=r"mix\.weights: weights sum to 0"):
        MixConfig({})
    with pytest.raises(UserError, match=r"gives no weight to what there is: maths"):
        MixConfig({"general": 1.0}, absent="rescale").over({"general": 1.0}, ["maths"])
    zero = Mixture(shards, "train", [Phase(2, 4, {"general": 1.0, "nowhere": 0.0})], 0)
    assert zero.rows(0, 0, 2).sources == ("general", "general")
    with pytest.raises(IndexError, match="2 rows, asked for 1 to 3"):
        zero.rows(0, 1, 2)


def test_the_share_of_an_absent_domain_goes_to_the_others_only_when_asked():
    weights = {"general": 0.5, "maths": 0.3, "code": 0.2}
    assert MixConfig(weights).over(weights, ["maths", "code"]) == weights
    rescale = MixConfig(weights, absent="rescale")
    assert rescale.over(weights, ["maths", "code", "extra"]) == {"maths": pytest.approx(0.6), "code": pytest.approx(0.4)}
    assert rescale.over({}, ["maths"]) == {}  # a stage of the curriculum without a mix of its own keeps none


def test_too_many_passes_over_a_source_are_refused(make_shards: MakeShards) -> None:
    shards = make_shards(general=[20, 20], maths=[5])
    mixture = Mixture(shards, "train", [Phase(4, 4, {"general": 0.5, "maths": 0.5})], 0)
    assert mixture.epochs() == {"general": pytest.approx(0.2), "maths": pytest.approx(1.6)}
    check_repetition(mixture, 0.0)
    check_repetition(mixture, 1.6)
    with pytest.raises(UserError, match=r"pass over 'maths' 1\.6 times, and mix\.max_epochs is 1\.5: lower its weight"):
        check_repetition(mixture, 1.5)
    with pytest.raises(UserError, match=r"mix\.max_epochs = -1"):
        MixConfig({"general": 1.0}, max_epochs=-1)
