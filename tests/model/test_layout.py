"""Weights laid out for few rows: the same model, and one that trains is left alone."""

import copy

import torch

from herd.model.config import ModelConfig
from herd.model.layout import lay_out_for_few_rows
from herd.model.transformer import Transformer
from herd.products import side_by_side

SHAPE = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=24, vocab_size=20, max_seq_len=8)


def test_the_model_stays_the_same():
    model = Transformer(SHAPE).requires_grad_(False)
    before = copy.deepcopy(model)
    lay_out_for_few_rows(model)
    weight = model.layers[0].feed_forward.w1.weight
    assert weight.shape == (24, 16) and weight.t().is_contiguous() and not weight.is_contiguous()
    assert model.tok_embeddings.weight.is_contiguous()  # looked up row by row
    for (name, old), (other, new) in zip(before.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other and torch.equal(old, new)
    tokens = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens), before(tokens), rtol=1e-5, atol=1e-6)
    lay_out_for_few_rows(model)  # a second engine on the same model
    torch.testing.assert_close(model(tokens), before(tokens), rtol=1e-5, atol=1e-6)


def test_projections_lie_side_by_side_until_one_is_replaced():
    model = Transformer(SHAPE).requires_grad_(False)
    attention = model.layers[0].attention
    maps = attention.wq, attention.wk, attention.wv
    before = torch.cat([m.weight for m in maps])
    assert side_by_side(*maps) is None
    lay_out_for_few_rows(model)
    together = side_by_side(*maps)
    assert torch.equal(together, before) and together.data_ptr() == attention.wq.weight.data_ptr()
    assert side_by_side(*maps[:2]) is None and side_by_side(*maps[::-1]) is None
    model.load_state_dict(Transformer(SHAPE).state_dict())  # into the same memory
    assert torch.equal(side_by_side(*maps), torch.cat([m.weight for m in maps]))
    attention.wk.weight.data = attention.wk.weight.data.clone()
    assert side_by_side(*maps) is None


def test_weights_that_train_keep_their_order():
    model = Transformer(SHAPE)
    lay_out_for_few_rows(model)
    assert all(weight.is_contiguous() for weight in model.parameters())
