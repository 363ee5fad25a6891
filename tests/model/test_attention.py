"""Every way of attention against a plain masked softmax, float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.model import attention
from herd.model.attention import ATTENTIONS, Blocks, Ragged, attend, prepare, ragged
from herd.model.masks import CAUSAL, Branches, Causal, Dense, Documents, Grouping, Mask

ON_CPU = ("auto", "sdpa", "documents")  # forward and backward; flex has no backward pass on a CPU, varlen nothing
DENSE_ROWS = ((3, 5, 1, 7), (8, 2, 4, 2))  # many short documents: one masked call
GROUPED_ROWS = ((150, 150), (150, 150), (300,))  # few long ones: a call for each length
FORKED_ROWS = (((90, 60, 40, 40), (70,)), ((90, 60, 40), (60, 50)), ((100, 80, 50, 70),))  # prompts and their responses


def plain(q, k, v, allowed):
    """Masked softmax, written out: (B, T, H, d), (B, S, KV, d), allowed (B, T, S)."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def by_hand(lengths):
    """The document mask from its definition, one pair of positions at a time."""
    rows = []
    for row in lengths:
        document = [i for i, n in enumerate(row) for _ in range(n)]
        rows.append([[s <= t and document[s] == document[t] for s in range(sum(row))] for t in range(sum(row))])
    return torch.tensor(rows)


def branches_by_hand(rows):
    """The mask of prompts and responses from its definition, one pair of positions at a time."""
    tables = []
    for row in rows:
        place = [(g, b) for g, group in enumerate(row) for b, n in enumerate(group) for _ in range(n)]
        reach = range(len(place))
        tables.append([[s <= t and place[s] in (place[t], (place[t][0], 0)) for s in reach] for t in reach])
    return torch.tensor(tables)


def way_of(mask: Mask, name: str = "auto"):
    return prepare(mask, name, "cpu", torch.float64)


def heads(lengths, kv_heads, seed=0):
    return tensors((len(lengths), sum(lengths[0])), kv_heads, seed)


def tensors(shape, kv_heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*shape, n, 8) for n in (4, kv_heads, kv_heads))
    return [torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [DENSE_ROWS, GROUPED_ROWS, ((6,), (6,))], ids=["short", "long", "one_per_row"])
def test_documents_equal_plain_softmax_with_gradients(lengths, kv_heads, name):
    check_with_gradients(Documents(lengths), by_hand(lengths), kv_heads, name)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_branches_equal_plain_softmax_with_gradients(kv_heads, name):
    check_with_gradients(Branches(FORKED_ROWS), branches_by_hand(FORKED_ROWS), kv_heads, name)


def check_with_gradients(mask, allowed, kv_heads, name):
    q, k, v = tensors(mask.shape, kv_heads)
    expected = plain(q, k, v, allowed)
    found = attend(q, k, v, way_of(mask, name))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("lengths", [DENSE_ROWS, GROUPED_ROWS], ids=["short", "long"])
@torch.no_grad()
def test_flex_equals_plain_softmax_forward(lengths, kv_heads):
    q, k, v = (x.detach() for x in heads(lengths, kv_heads))
    way = way_of(Documents(lengths), "flex")
    assert isinstance(way, Blocks)
    torch.testing.assert_close(attend(q, k, v, way), plain(q, k, v, by_hand(lengths)), rtol=0, atol=1e-12)


@st.composite
def layouts(draw):
    """Rows of one length, each cut into documents anywhere."""
    total = draw(st.integers(1, 40))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=8))) if total > 1 else []
        rows.append(tuple(b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)))
    return tuple(rows)


@settings(max_examples=40, deadline=None)
@given(lengths=layouts(), kv_heads=st.sampled_from([1, 2, 4]), name=st.sampled_from([*ON_CPU, "flex"]))
@torch.no_grad()
def test_any_layout_equals_plain_softmax(lengths, kv_heads, name):
    q, k, v = (x.detach() for x in heads(lengths, kv_heads, seed=len(lengths)))
    found = attend(q, k, v, way_of(Documents(lengths), name))
    torch.testing.assert_close(found, plain(q, k, v, by_hand(lengths)), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(lengths=layouts(), name=st.sampled_from(ON_CPU), data=st.data())
def test_a_document_moves_no_other_ones_outputs_or_gradients(lengths, name, data):
    row = data.draw(st.integers(0, len(lengths) - 1))
    document = data.draw(st.integers(0, len(lengths[row]) - 1))
    start = sum(lengths[row][:document])
    inside = torch.zeros(len(lengths), sum(lengths[0]), dtype=torch.bool)
    inside[row, start : start + lengths[row][document]] = True

    def run(inputs):
        out = attend(*inputs, way_of(Documents(lengths), name))
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        return [out.detach(), *gradients]

    before = heads(lengths, 2)
    after = [torch.where(inside[..., None, None], x.detach() + 3.0, x.detach()).requires_grad_() for x in before]
    for a, b in zip(run(before), run(after), strict=True):
        assert torch.equal(a[~inside], b[~inside])  # bitwise
        assert not torch.equal(a[inside], b[inside])


@st.composite
def forked(draw):
    """Rows of one length, each of groups of a prompt and up to four responses, the rest a document."""
    row = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple), min_size=1, max_size=3).map(tuple)
    rows = draw(st.lists(row, min_size=1, max_size=3))
    total = max(sum(map(sum, row)) for row in rows)
    return tuple((*row, *(((total - sum(map(sum, row))),),) * (sum(map(sum, row)) < total)) for row in rows)


@settings(max_examples=20, deadline=None)
@given(rows=forked(), kv_heads=st.sampled_from([1, 2, 4]), name=st.sampled_from([*ON_CPU, "flex"]))
@torch.no_grad()
def test_any_branches_equal_plain_softmax(rows, kv_heads, name):
    mask = Branches(rows)
    q, k, v = (x.detach() for x in tensors(mask.shape, kv_heads, seed=len(rows)))
    found = attend(q, k, v, way_of(mask, name))
    torch.testing.assert_close(found, plain(q, k, v, branches_by_hand(rows)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_response_moves_no_other_ones_outputs_or_gradients(name):
    mask = Branches(FORKED_ROWS)
    inside = torch.zeros(mask.shape, dtype=torch.bool)
    inside[0, 90:150] = True  # the first response of the first group
    others = torch.zeros(mask.shape, dtype=torch.bool)
    others[0, 150:] = True  # its other responses, and a document
    others[1:] = True

    def run(inputs):
        out = attend(*inputs, way_of(mask, name))
        return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]

    before = tensors(mask.shape, 2)
    after = [torch.where(inside[..., None, None], x.detach() + 3.0, x.detach()).requires_grad_() for x in before]
    for i, (a, b) in enumerate(zip(run(before), run(after), strict=True)):
        assert torch.equal(a[others], b[others])  # bitwise
        assert not torch.equal(a[inside], b[inside])
        prompt = torch.equal(a[0, :90], b[0, :90])
        assert prompt == (i < 2)  # the prompt's outputs stay; its keys and values hear of the response in the gradient


def test_causal_is_the_lower_triangle():
    torch.manual_seed(1)
    q = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 5, 2, 8, dtype=torch.float64) for _ in range(2))
    allowed = by_hand(((5,),)).expand(2, -1, -1)
    torch.testing.assert_close(attend(q, k, v, CAUSAL), plain(q, k, v, allowed), rtol=0, atol=1e-12)


def test_dense_takes_any_mask():
    torch.manual_seed(2)
    q, k, v = torch.randn(2, 6, 4, 8).double(), torch.randn(2, 7, 2, 8).double(), torch.randn(2, 7, 2, 8).double()
    allowed = torch.rand(2, 6, 7) < 0.5
    allowed[..., 3] = True
    torch.testing.assert_close(attend(q, k, v, Dense(allowed)), plain(q, k, v, allowed), rtol=0, atol=1e-12)
    shared = Dense(allowed[:1])
    expected = plain(q, k, v, allowed[:1].expand(2, -1, -1))
    torch.testing.assert_close(attend(q, k, v, shared), expected, rtol=0, atol=1e-12)


def test_auto_takes_what_device_and_lengths_ask_for():
    assert isinstance(way_of(Documents(DENSE_ROWS)), Dense)
    assert isinstance(way_of(Documents(GROUPED_ROWS)), Grouping)
    assert isinstance(way_of(Branches((((3, 2, 4), (2, 1, 4)),))), Dense)
    assert isinstance(way_of(Branches(FORKED_ROWS)), Grouping)
    for name in ATTENTIONS.names():
        assert isinstance(way_of(Branches((((4, 2),),)), name), Causal)  # one response a prompt is a document
        assert isinstance(way_of(Documents(((6,), (6,))), name), Causal)  # one document a row is plainly causal
        assert way_of(CAUSAL, name) is CAUSAL  # a name is about documents only


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("varlen", r"attention = varlen needs a GPU and half precision \(here: cpu, float64\): use attention = auto"),
        ("flex", "attention = flex trains on a GPU only .*: use attention = auto"),
        ("documnets", "Unknown attention 'documnets'. Did you mean 'documents'"),
    ],
)
def test_what_cannot_be_done_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        way_of(Documents(DENSE_ROWS), name)


def test_varlen_refuses_branches(monkeypatch):
    with pytest.raises(UserError, match="varlen cannot let responses share a prompt: use attention = auto or flex, or row"):
        ATTENTIONS.get("varlen")(Branches(FORKED_ROWS), torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("knows_groups", [True, False])
def test_varlen_is_called_with_the_documents_end_to_end(monkeypatch, knows_groups):
    """The kernel itself needs a GPU: a stand-in that follows its documentation shows that the arguments are right."""

    def kernel(q, k, v, q_borders, k_borders, q_longest, k_longest, *, window_size=(-1, -1), enable_gqa=False):
        assert q_borders.dtype == torch.int32
        assert torch.equal(q_borders, k_borders)
        assert window_size == (-1, 0)  # causal
        assert enable_gqa == (q.shape[1] != k.shape[1])
        out = torch.empty_like(q)
        longest = 0
        for start, end in zip(q_borders.tolist(), q_borders.tolist()[1:], strict=False):
            allowed = torch.ones(1, end - start, end - start, dtype=torch.bool).tril()
            out[start:end] = plain(*(x[None, start:end] for x in (q, k, v)), allowed)[0]
            longest = max(longest, end - start)
        assert q_longest == k_longest == longest
        return out

    monkeypatch.setattr(attention, "_varlen_kernel", lambda: (kernel, knows_groups))
    with torch.no_grad():
        q, k, v = heads(GROUPED_ROWS, 2)
        way = ragged(Documents(GROUPED_ROWS), torch.device("cpu"))
        assert isinstance(way, Ragged)
        found = attend(q, k, v, way)
    torch.testing.assert_close(found, plain(q, k, v, by_hand(GROUPED_ROWS)), rtol=0, atol=1e-12)


def test_torchs_varlen_takes_the_arguments_that_are_given():
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    assert {"cu_seq_q", "cu_seq_k", "max_q", "max_k", "window_size"} <= set(inspect.signature(varlen_attn).parameters)
