"""Sampling: right distribution, and each sample a function of its own prompt, seed and index."""

import dataclasses
import math

import pytest
import torch

from herd.config.errors import UserError
from herd.generation.choose import SamplingConfig, choose
from herd.generation.sampler import generate
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=64, vocab_size=300, max_seq_len=128, tie_embeddings=True)
CONFIG = SamplingConfig(max_new_tokens=14, temperature=1.0, top_p=0.9, seed=7)
STOPS = (5, 9, 11, 40, 77, 130)  # enough of 300 that samples end at different steps


@pytest.fixture(scope="module")
def model():
    model = Transformer(SHAPE).requires_grad_(False)
    for name, weight in model.named_parameters():  # layers and logits that matter, unlike at initialisation
        weight.mul_(20 if name.endswith(("wo.weight", "w2.weight")) else 2 if "embeddings" in name else 1)
    return model


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 2, 15, 16, 17, 30, 31, 33, 40, 40, 61, 3]
    return [torch.randint(0, 300, (n,), generator=generator).tolist() for n in lengths]


def tokens(samples):
    return [[s.tokens for s in of_prompt] for of_prompt in samples]


def test_greedy_equals_a_full_forward_pass_at_every_step(model, prompts):
    found = generate(model, prompts, 1, dataclasses.replace(CONFIG, temperature=0.0), STOPS)
    for prompt, (sample,) in zip(prompts, found, strict=True):
        row, total = list(prompt), 0.0
        for _ in range(CONFIG.max_new_tokens):
            logits = model.logits(model(torch.tensor([row])))[0, -1]
            row.append(int(logits.argmax()))
            total += logits.log_softmax(-1)[row[-1]].item()
            if row[-1] in STOPS:
                break
        assert sample.tokens == row[len(prompt) :]
        assert sample.finished == (row[-1] in STOPS)
        assert math.isclose(sample.logprob, total, abs_tol=1e-3)


def test_samples_end_with_their_first_stop(model, prompts):
    samples = [s for of_prompt in generate(model, prompts, 8, CONFIG, STOPS) for s in of_prompt]
    for sample in samples:
        assert sample.finished == (sample.tokens[-1] in STOPS)
        assert not set(sample.tokens[:-1]) & set(STOPS)
        assert sample.finished or len(sample.tokens) == CONFIG.max_new_tokens
    assert len({len(s.tokens) for s in samples}) > 5  # ends differ, so rows were dropped on the way
    assert {s.finished for s in samples} == {True, False}


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_a_sample_depends_on_nothing_but_prompt_seed_and_index(model, prompts, top_p):
    config = dataclasses.replace(CONFIG, top_p=top_p)
    whole = tokens(generate(model, prompts, 4, config, STOPS, batch_size=256))
    for batch_size in (7, 20):
        assert tokens(generate(model, prompts, 4, config, STOPS, batch_size=batch_size)) == whole
    assert tokens(generate(model, prompts[::-1], 4, config, STOPS))[::-1] == whole
    assert [tokens(generate(model, [p], 4, config, STOPS))[0] for p in prompts] == whole
    assert tokens(generate(model, prompts, 3, config, STOPS)) == [row[:3] for row in whole]


def test_equal_prompts_get_equal_samples_and_seeds_differ(model, prompts):
    first, second, third = tokens(generate(model, [prompts[5], prompts[3], prompts[5]], 4, CONFIG, STOPS))
    assert first == third != second
    assert len({tuple(s) for s in first}) == 4
    assert tokens(generate(model, [prompts[5]], 4, dataclasses.replace(CONFIG, seed=8), STOPS))[0] != first


def test_frequencies_follow_the_model(model, prompts):
    count = 4000
    config = SamplingConfig(max_new_tokens=1, temperature=0.7, seed=1)
    (samples,) = generate(model, [prompts[4]], count, config, (), batch_size=count)
    logits = model.logits(model(torch.tensor([prompts[4]])))[0, -1]
    expected = (logits / 0.7).softmax(-1) * count
    found = torch.bincount(torch.tensor([s.tokens[0] for s in samples]), minlength=300)
    pooled = expected < 5
    terms = (found - expected)[~pooled].square() / expected[~pooled]
    rest = (found[pooled].sum() - expected[pooled].sum()).square() / expected[pooled].sum()
    degrees = int((~pooled).sum())
    # Chi-squared: mean `degrees`, standard deviation sqrt(2 degrees); 4 deviations. A fixed seed, so no chance in the
    # test.
    assert abs(float(terms.sum() + rest) - degrees) < 4 * math.sqrt(2 * degrees)


def test_choose_inverts_the_cumulative_distribution():
    logits = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log()
    draws = {0.0: 0, 0.4999: 0, 0.5001: 2, 0.7499: 2, 0.7501: 3, 1 - 2**-24: 3}
    for draw, token in draws.items():
        assert choose(logits, torch.tensor([draw]), 1.0, 1.0).item() == token, draw
    # Temperature 0.5 squares the odds: 4/6, 1/6, 1/6.
    assert choose(logits, torch.tensor([0.66]), 0.5, 1.0).item() == 0
    assert choose(logits, torch.tensor([0.67]), 0.5, 1.0).item() == 2
    for temperature in (0.0, 5e-324, 1e-40, 1e-30):  # logits divided by the first three are no numbers
        assert choose(logits, torch.tensor([0.99]), temperature, 1.0).item() == 0


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().repeat(1000, 1)
    draws = torch.linspace(0, 1 - 2**-24, 1000)
    for top_p, kept in (
        (0.05, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.69, {1, 3}),
        (0.71, {1, 2, 3}),
        (0.95, {0, 1, 2, 3}),
    ):
        assert set(choose(logits, draws, 1.0, top_p).tolist()) == kept, top_p
    share = (choose(logits, draws, 1.0, 0.6) == 1).float().mean().item()
    assert abs(share - 4 / 7) < 0.01  # renormalised: 0.4 / (0.4 + 0.3)


def test_wide_and_narrow_nuclei_share_a_batch():
    generator = torch.Generator().manual_seed(0)
    flat, peaked = torch.zeros(1, 2000), torch.randn(1, 2000, generator=generator) * 8
    draws = torch.tensor([0.3, 0.3])
    both = choose(torch.cat([flat, peaked]), draws, 1.0, 0.9)
    assert both[0] == choose(flat, draws[:1], 1.0, 0.9)[0]
    assert both[1] == choose(peaked, draws[:1], 1.0, 0.9)[0]
    ordered = peaked.softmax(-1).sort(descending=True)
    kept = ordered.values[0, : int((ordered.values.cumsum(-1) < 0.9).sum()) + 1]
    place = int((kept.cumsum(0) <= 0.3 * kept.sum()).sum())
    assert both[1] == ordered.indices[0, place]


def test_order_of_results_and_empty_input(model, prompts):
    assert generate(model, [], 4, CONFIG, STOPS) == []
    results = generate(model, prompts, 2, CONFIG, STOPS)
    assert len(results) == len(prompts)
    assert all(len(r) == 2 for r in results)


def test_bad_input_is_one_clear_line(model, prompts):
    with pytest.raises(UserError, match="Prompt 1: the prompt is empty"):
        generate(model, [[1], []], 1, CONFIG, STOPS)
    with pytest.raises(UserError, match=r"Prompt 0: the prompt has 115 tokens.*leaves room for 114"):
        generate(model, [[1] * 115], 1, CONFIG, STOPS)
    with pytest.raises(UserError, match="samples_per_prompt"):
        generate(model, prompts, 0, CONFIG, STOPS)
    for change in ({"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_new_tokens": 0}):
        with pytest.raises(UserError, match=next(iter(change))):
            dataclasses.replace(CONFIG, **change)
    longest = generate(model, [[1] * 114], 1, CONFIG, ())
    assert len(longest[0][0].tokens) == 14


def test_autocast_samples(model, prompts):
    with torch.autocast("cpu", torch.bfloat16):
        results = generate(model, prompts[:3], 2, CONFIG, STOPS)
    assert all(s.tokens for of_prompt in results for s in of_prompt)


def test_each_prompt_is_told_once_when_its_last_sample_has_ended(model):
    prompts, told = [[1, 2, 3], [4, 5], [6]], []
    config = SamplingConfig(max_new_tokens=6, seed=2)
    samples = generate(model, prompts, 3, config, [0, 1, 2, 3], 2, done=lambda *of: told.append(of))
    assert sorted(told, key=lambda of: of[0]) == list(enumerate(samples))
