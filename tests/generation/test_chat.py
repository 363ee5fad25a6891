"""Chat around the sampler: the prompt in its format, the answer as text."""

import pytest

from herd.corpus.tokenizer import TokenizerConfig, train_tokenizer
from herd.dialog.messages import Message, Role
from herd.dialog.render import render
from herd.generation.chat import fits, sample_answers
from herd.generation.sampler import OwnSampler, SamplingConfig, generate
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

PROMPTS = [(Message(Role.USER, text),) for text in ("What is it?", "Which colour?", "A much longer question about it?")]


@pytest.fixture(scope="module")
def tokenizer():
    config = TokenizerConfig(vocab_size=300, special_tokens=11, training_characters=1000, fill_with_reserved=True)
    return train_tokenizer(["assistant user \n\n what colour is it " * 4], config)


@pytest.fixture(scope="module")
def model(tokenizer):
    shape = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=tokenizer.vocab_size, max_seq_len=128)
    return Transformer(shape)


def test_answers_are_the_samplers_after_an_assistant_header(model, tokenizer):
    config = SamplingConfig(max_new_tokens=8, temperature=1.0, seed=3)
    answers = sample_answers(OwnSampler(model), tokenizer, PROMPTS, config, samples_per_prompt=2)
    rendered = [render(p, tokenizer, generation_prompt=True).tokens.tolist() for p in PROMPTS]
    assert all(tokenizer.decode(r).endswith("<|end_header_id|>\n\n") for r in rendered)
    wanted = generate(model, rendered, 2, config, tokenizer.stop_ids)
    assert [[list(a.tokens) for a in group] for group in answers] == [[s.tokens for s in group] for group in wanted]
    for group in answers:
        for answer in group:
            assert "<|" not in answer.text
            assert answer.finished == (answer.tokens[-1] in tokenizer.stop_ids)


def test_one_greedy_answer_to_each_prompt_in_order(model, tokenizer):
    config = SamplingConfig(max_new_tokens=6, temperature=0.0)
    sampler = OwnSampler(model)
    together = sample_answers(sampler, tokenizer, PROMPTS, config)
    assert together == [sample_answers(sampler, tokenizer, [p], config)[0] for p in PROMPTS]


def test_what_fits_is_what_the_sampler_takes(model, tokenizer):
    length = len(render(PROMPTS[0], tokenizer, generation_prompt=True))
    assert fits(PROMPTS[0], tokenizer, window=length + 8, max_new_tokens=8)
    assert not fits(PROMPTS[0], tokenizer, window=length + 7, max_new_tokens=8)
