"""The backbone: what may influence what, caching, initialisation, RoPE."""

import dataclasses
import math

import pytest
import torch

from herd.config.errors import UserError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.heads import RewardModel
from herd.model.masks import CAUSAL, Dense, Documents
from herd.model.rope import apply_rope, rope_frequencies, rope_table
from herd.model.transformer import RMSNorm, Transformer

SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=101, max_seq_len=512, tie_embeddings=True)
SHORT_ROWS = ((3, 5, 1, 7), (8, 2, 4, 2))  # taken as one masked call
LONG_ROWS = ((150, 150), (200, 100), (300,))  # taken as a call for each document length


def tokens_for(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SHAPE.vocab_size, (len(lengths), sum(lengths[0])), generator=generator)


def positions_for(lengths):
    return torch.tensor([[i for n in row for i in range(n)] for row in lengths])


def lively(config=SHAPE):
    """A model whose layers matter: at initialisation they write next to nothing to the residual stream."""
    model = Transformer(config)
    for name, weight in model.named_parameters():
        if name.endswith(("wo.weight", "w2.weight")):
            weight.data.mul_(20)
    return model


@pytest.fixture(scope="module")
def model():
    return lively().requires_grad_(False)


@pytest.mark.parametrize("lengths", [SHORT_ROWS, LONG_ROWS], ids=["dense", "grouped"])
def test_a_changed_token_reaches_only_what_follows_in_its_document(model, lengths):
    assert Documents(lengths).prefers_dense == (lengths is SHORT_ROWS)
    tokens = tokens_for(lengths)
    before = model(tokens, positions_for(lengths), Documents(lengths))
    row, document = 0, 1
    start = lengths[row][0]
    place, end = start + lengths[row][document] // 2, start + lengths[row][document]
    tokens[row, place] = (tokens[row, place] + 1) % SHAPE.vocab_size
    after = model(tokens, positions_for(lengths), Documents(lengths))
    changed = (before != after).any(-1)
    expected = torch.zeros_like(changed)
    expected[row, place:end] = True
    assert torch.equal(changed, expected)  # bitwise: elsewhere not a bit moves, here every position does


def test_causal_changes_nothing_earlier(model):
    tokens = tokens_for(((20,),))
    before = model(tokens)
    tokens[0, 11] = (tokens[0, 11] + 1) % SHAPE.vocab_size
    changed = (before != model(tokens)).any(-1)[0]
    assert changed.tolist() == [False] * 11 + [True] * 9


@pytest.mark.parametrize("lengths", [SHORT_ROWS, LONG_ROWS], ids=["dense", "grouped"])
def test_packed_documents_equal_documents_alone(lengths):
    model = lively().double()
    tokens, positions = tokens_for(lengths), positions_for(lengths)
    packed = model(tokens, positions, Documents(lengths))
    for b, row in enumerate(lengths):
        start = 0
        for n in row:
            alone = model(tokens[b : b + 1, start : start + n])
            torch.testing.assert_close(packed[b, start : start + n], alone[0], rtol=0, atol=1e-11)
            start += n
    # RoPE is relative: positions that run on through the row give the same.
    torch.testing.assert_close(model(tokens, None, Documents(lengths)), packed, rtol=0, atol=1e-11)


def test_one_document_a_row_is_plain_causal(model):
    tokens = tokens_for(((9,), (9,)))
    assert torch.equal(model(tokens, mask=Documents(((9,), (9,)))), model(tokens, mask=CAUSAL))


def test_left_padding_with_a_dense_mask_changes_nothing():
    model = lively().double()
    tokens = tokens_for(((7,),))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), tokens], 1)
    steps = torch.arange(10)
    allowed = ((steps[:, None] >= steps) & (steps >= 3)) | torch.eye(10, dtype=torch.bool)
    hidden = model(padded, (steps - 3).clamp(min=0)[None], Dense(allowed[None]))
    torch.testing.assert_close(hidden[:, 3:], model(tokens), rtol=0, atol=1e-12)


def test_same_seed_same_bits_and_weights_do_not_depend_on_depth():
    one, two = Transformer(SHAPE), Transformer(SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    two.init_weights(seed=1)
    assert not torch.equal(one.tok_embeddings.weight, two.tok_embeddings.weight)
    deeper = Transformer(dataclasses.replace(SHAPE, n_layers=5))
    assert torch.equal(one.layers[1].attention.wq.weight, deeper.layers[1].attention.wq.weight)


def test_initial_loss_is_near_uniform():
    model = Transformer(dataclasses.replace(SHAPE, dim=64, vocab_size=1000)).requires_grad_(False)
    logits = model.logits(model(torch.randint(0, 1000, (4, 64), generator=torch.Generator().manual_seed(0))))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(256) % 1000)
    assert logits.dtype == torch.float32
    assert abs(loss - math.log(1000)) < 0.3


def test_tied_and_untied_heads():
    assert "output.weight" not in Transformer(SHAPE).state_dict()
    untied = Transformer(dataclasses.replace(SHAPE, tie_embeddings=False))
    assert untied.output_weight is untied.state_dict(keep_vars=True)["output.weight"]
    assert "rope" not in untied.state_dict()


def test_rmsnorm_is_computed_in_float32_then_weighted():
    norm = RMSNorm(6, eps=1e-5)
    norm.weight.data = torch.arange(1.0, 7.0)
    x = torch.randn(3, 6, dtype=torch.float64) * 1e3
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=0)
    half = (torch.randn(3, 6) * 300).to(torch.float16)  # squares overflow float16
    assert norm(half.requires_grad_(False)).isfinite().all()


def test_rope_depends_on_relative_position_only():
    table = rope_table(8, 64, 500000.0, None, torch.float64)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).unbind()
    score = lambda i, j: (apply_rope(q, table[None, i : i + 1]) * apply_rope(k, table[None, j : j + 1])).sum()  # noqa: E731
    torch.testing.assert_close(score(7, 3), score(44, 40))
    assert (score(7, 3) - score(7, 4)).abs() > 1e-6
    torch.testing.assert_close(apply_rope(q, table[None, :1]), q)


def test_rope_scaling_by_band():
    plain = rope_frequencies(128, 500000.0, None)
    scaled = rope_frequencies(128, 500000.0, RopeScaling())
    wavelength = 2 * math.pi / plain
    ratio = plain / scaled
    assert torch.equal(ratio[wavelength < 8192 / 4], torch.ones_like(ratio[wavelength < 8192 / 4]))
    torch.testing.assert_close(ratio[wavelength > 8192], torch.full_like(ratio[wavelength > 8192], 8.0))
    between = ratio[(wavelength > 8192 / 4) & (wavelength < 8192)]
    assert len(between)
    assert ((between > 1) & (between < 8)).all()
    assert (between.diff() > 0).all()


def test_set_rope_extends_the_context(model):
    extended = lively()
    with pytest.raises(UserError, match="513 positions"):
        extended(torch.zeros(1, 513, dtype=torch.int64))
    extended.set_rope(500_000.0, RopeScaling(original_max_seq_len=512), 1024)
    assert extended(torch.zeros(1, 513, dtype=torch.int64)).shape == (1, 513, 32)
    tokens = tokens_for(((40,),))
    assert not torch.equal(extended(tokens), model(tokens))
    extended.set_rope(500_000.0, None, 1024)
    assert torch.equal(extended(tokens), model(tokens))


def test_rope_table_keeps_its_precision_in_a_bfloat16_model():
    model = Transformer(SHAPE).bfloat16()
    assert model.rope.dtype == torch.float32
    assert torch.equal(model.rope, Transformer(SHAPE).rope)
    assert model(torch.zeros(1, 4, dtype=torch.int64)).dtype == torch.bfloat16
    assert Transformer(SHAPE).double().rope.dtype == torch.float64


def test_bfloat16_autocast_stays_close(model):
    tokens = tokens_for(LONG_ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(tokens, mask=Documents(LONG_ROWS))
    assert (hidden.float() - model(tokens, mask=Documents(LONG_ROWS))).abs().mean() < 0.02


def test_meta_model_materialises():
    with torch.device("meta"):
        model = Transformer(SHAPE)
    assert model.norm.weight.is_meta
    assert model.rope.is_meta
    model.to_empty(device="cpu").init_weights(seed=0)
    tokens = tokens_for(((9,),))
    assert torch.equal(model(tokens), Transformer(SHAPE)(tokens))


def test_reward_model_scores_every_position():
    reward = RewardModel(lively(), seed=3)
    tokens = tokens_for(SHORT_ROWS)
    scores = reward(tokens, positions_for(SHORT_ROWS), Documents(SHORT_ROWS))
    assert scores.shape == tokens.shape
    assert scores.dtype == torch.float32
    hidden = reward.backbone(tokens, positions_for(SHORT_ROWS), Documents(SHORT_ROWS))
    torch.testing.assert_close(scores, hidden @ reward.head.weight[0])
    wide = RewardModel(Transformer(dataclasses.replace(SHAPE, dim=1024, n_layers=1))).head.weight
    assert abs(wide.std().item() * math.sqrt(1025) - 1) < 0.1


def test_unresolved_vocabulary_is_refused():
    unresolved = dataclasses.replace(SHAPE, vocab_size=0)
    with pytest.raises(UserError, match="vocab_size is 0"):
        Transformer(unresolved)
    assert unresolved.with_vocab_size(300).vocab_size == 300
    assert SHAPE.with_vocab_size(90) is SHAPE
    with pytest.raises(UserError, match="tokenizer has 300"):
        SHAPE.with_vocab_size(300)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", 33), ("dim", 0), ("n_heads", 32), ("n_kv_heads", 3), ("vocab_size", -1), ("norm_eps", 0.0)],
)
def test_impossible_shapes_are_refused(field, value):
    with pytest.raises(UserError, match="model"):
        dataclasses.replace(SHAPE, **{field: value})
