"""Attention over pages: the two ways of computing a part agree, with each other and with a softmax over all."""

import pytest
import torch

from herd.model.cache import PagedCache, by_scores, partial_attention
from herd.model.config import ModelConfig
from herd.products import operand


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parts_merge_to_the_whole(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(6, n, 8, generator=generator, dtype=torch.float64).to(dtype) for n in (4, 48, 48))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    seen, unseen = operand(torch.zeros(2, 6, 1, 48), dtype)
    unseen[1, :, 40:] = -torch.inf
    for way, hidden in ((partial_attention, None), (by_scores, seen), (by_scores, unseen)):
        scores = (q.double() @ k.double().transpose(-1, -2)) / 8**0.5 + (0 if hidden is None else hidden.double())
        masks = [() if hidden is None else (hidden[..., a : a + 16],) for a in (0, 16, 32)]
        q_, k_, v_ = (operand(x, dtype) for x in (q, k, v))
        parts = [way(q_, k_[:, a : a + 16], v_[:, a : a + 16], *mask) for a, mask in zip((0, 16, 32), masks, strict=True)]
        sizes = torch.stack([size for _, size in parts])
        torch.testing.assert_close(sizes.logsumexp(0).double(), scores.logsumexp(-1), rtol=0, atol=tolerance)
        merged = (torch.stack([out for out, _ in parts]) * sizes.softmax(0).unsqueeze(-1)).sum(0)
        torch.testing.assert_close(merged.double(), scores.softmax(-1) @ v.double(), rtol=0, atol=tolerance)


def test_what_is_written_is_read_by_slice_and_by_number():
    shape = ModelConfig(dim=8, n_layers=2, n_heads=2, n_kv_heads=2, ffn_dim=8, vocab_size=10, max_seq_len=32)
    cache = PagedCache(shape, pages=5, page_size=4)
    k, v = torch.randn(2, 3, 2, 4)
    cache.write(1, cache.slots(torch.tensor([3, 3, 1]), torch.tensor([0, 2, 3])), k, v)
    keys, values = cache.read(1, slice(1, 4))
    assert torch.equal(keys[2, :, 0], k[0]) and torch.equal(keys[2, :, 2], k[1]) and torch.equal(values[0, :, 3], v[2])
    assert torch.equal(cache.read(1, torch.tensor([3]))[0][0], keys[2])
    assert len(cache) == 5
    assert not cache.keys[0].any() and int((cache.keys != 0).sum()) == k.numel()
    cache.clear(torch.tensor([3]))
    assert torch.equal(cache.keys[1, 1, :, 3], k[2]) and not cache.keys[1, 3].any()


def test_a_run_is_one_matrix_in_place_and_scattered_pages_are_copied_to_the_same():
    shape = ModelConfig(dim=8, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=8, vocab_size=10, max_seq_len=32)
    cache = PagedCache(shape, pages=6, page_size=4)
    k, v = torch.randn(2, 10, 2, 4)
    place, scattered = torch.arange(10), torch.tensor([5, 0, 4])
    cache.write(0, cache.slots(torch.full((10,), 1), place, run=3), k, v)
    cache.write(0, cache.slots(scattered[place // 4], place % 4), k, v)
    runs = cache.read(0, slice(0, 1), 3, 8), cache.read(0, torch.tensor([1]), 3)
    assert [x.shape for x in runs[0] + runs[1]] == [(1, 2, 8, 4)] * 2 + [(1, 2, 12, 4)] * 2
    moved = PagedCache(shape, pages=6, page_size=4)
    moved.write(0, moved.slots(torch.full((10,), 3), place, run=torch.full((10, 1), 3)), k, v)
    for read, narrow, written in zip(moved.read(0, torch.tensor([1]), 3), moved.read(0, slice(1, 2), 3, 8), (k, v), strict=True):
        assert torch.equal(read[0, :, :10], written.transpose(0, 1)) and torch.equal(narrow, read[:, :, :8])
    for pages in (slice(1, 4), scattered):
        for read, written in zip(cache.read_whole(0, pages), (k, v), strict=True):
            assert read.shape == (1, 2, 12, 4) and torch.equal(read[0, :, :10], written.transpose(0, 1))
            assert not read[0, :, 10:].any()
    assert cache.read_whole(0, slice(1, 4))[0].data_ptr() == cache.keys[0, 1].data_ptr()
