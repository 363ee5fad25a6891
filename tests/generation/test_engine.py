"""The engine: one prompt's keys stored once, admission that keeps its promises, and samples that no company changes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.generation import likeliest
from herd.generation.choose import SamplingConfig
from herd.generation.decode_plan import decode_plan
from herd.generation.engine import Engine, Request
from herd.generation.pages import PagePool, pages_read
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=120, max_seq_len=96, tie_embeddings=True)
SAMPLING = SamplingConfig(max_new_tokens=9, temperature=1.0, seed=3)
STOPS = frozenset((5, 9, 40, 77))
PROMPTS = [np.random.default_rng(i).integers(0, 120, n).tolist() for i, n in enumerate((1, 3, 16, 21, 40, 41, 77))]


@pytest.fixture(scope="module")
def model():
    model = Transformer(SHAPE).requires_grad_(False)
    for name, weight in model.named_parameters():  # layers and logits that matter, unlike at initialisation
        weight.mul_(20 if name.endswith(("wo.weight", "w2.weight")) else 2 if "embeddings" in name else 1)
    return model


def request(prompt, samples=1, sampling=SAMPLING, stops=STOPS):
    return Request(tuple(prompt), samples, sampling, stops)


def finish(engine, found=None):
    """Step until all is drawn: (request, sample) -> tokens and log-probabilities."""
    found = {} if found is None else found
    while engine.busy:
        step(engine, found)
    return found


def step(engine, found):
    for drawn in engine.step():
        found.setdefault((drawn.request, drawn.sample), []).append((drawn.token, drawn.logprob))


@pytest.fixture(scope="module")
def alone(model):
    """(prompt, page size) -> its three samples, each drawn with nothing beside it."""
    found = {}
    for size in (4, 16):
        for i, prompt in enumerate(PROMPTS):
            engine = Engine(model, 1, 112, size)
            engine.submit(request(prompt, 3))
            found[i, size] = [tokens for _, tokens in sorted(finish(engine).items())]
    return found


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_company_order_memory_and_number_change_no_bit(model, alone, data):
    torch.set_num_threads(1)
    size = data.draw(st.sampled_from([4, 16]))
    engine = Engine(model, data.draw(st.integers(1, 12)), data.draw(st.sampled_from([112, 160, 480])), size)
    arrivals = data.draw(st.lists(st.tuples(st.sampled_from(range(len(PROMPTS))), st.integers(1, 3)), min_size=1, max_size=7))
    found, asked = {}, {}
    for i, samples in arrivals:
        asked[engine.submit(request(PROMPTS[i], samples))] = i, samples
        for _ in range(data.draw(st.integers(0, 4))):
            step(engine, found)
            assert len(engine._rows) <= engine.max_rows
    finish(engine, found)
    assert {*found} == {(number, k) for number, (_, samples) in asked.items() for k in range(samples)}
    for (number, k), tokens in found.items():
        assert tokens == alone[asked[number][0], size][k]  # log-probabilities too, to the bit
    assert engine.pool.used == 0


def test_a_prompt_that_is_read_whole_is_as_indifferent_to_company(model):
    torch.set_num_threads(1)
    many = request(PROMPTS[5], 9)  # 41 tokens on pages of 4: 11 of them
    engine = Engine(model, 2, 112, 4)
    engine.submit(many)
    expected = [tokens for _, tokens in sorted(finish(engine).items())]
    few = Engine(model, 3, 112, 4)
    few.submit(request(PROMPTS[5], 3))
    for page_by_page, whole in zip([tokens for _, tokens in sorted(finish(few).items())], expected, strict=False):
        assert [t for t, _ in page_by_page] == [t for t, _ in whole]
        np.testing.assert_allclose([p for _, p in page_by_page], [p for _, p in whole], atol=1e-5)
    engine = Engine(model, 16, 240, 4)
    first, last = engine.submit(request(PROMPTS[0])), engine.submit(request(PROMPTS[2], 4))
    found = {}
    step(engine, found)
    engine.cancel(first)  # leaves a hole of one page
    scattered = engine.submit(many)
    holes = engine.pool.holders == 0
    engine.pool.holders[holes & (np.arange(60) % 12 == 0)] += 1  # no room for 11 in a row
    finish(engine, found)
    assert [found[scattered, k] for k in range(9)] == expected
    assert {number for number, _ in found} == {first, last, scattered}


def test_only_long_prompts_of_many_samples_are_read_whole(model):
    for prompt, samples, whole in ((5, 8, True), (5, 7, False), (1, 8, False)):
        engine = Engine(model, 16, 480, 4)
        engine.submit(request(PROMPTS[prompt], samples, stops=frozenset()))
        engine.step()
        engine.step()
        row = engine._rows[0]
        plan = decode_plan(engine.storage, [r.place for r in engine._rows])
        assert len(row.source.pages) == -(-len(PROMPTS[prompt]) // 4)
        assert (len(plan.whole), len(plan.paged)) == ((1, 0) if whole else (0, 1))
        assert plan.columns == (0 if whole else len(row.source.pages))


def test_another_page_size_changes_no_token(alone):
    for i in range(len(PROMPTS)):
        small, large = (np.array([t for sample in alone[i, size] for t in sample]) for size in (4, 16))
        assert (small[:, 0] == large[:, 0]).all()
        np.testing.assert_allclose(small[:, 1], large[:, 1], atol=1e-5)


def test_a_prompt_is_stored_once(model):
    """Bytes of what the samples hold: the prompt's pages once, and a page for the tokens of each."""
    samples, size, prompt = 16, 16, PROMPTS[5]  # 41 tokens: three pages, the last of them with 9
    engine = Engine(model, samples, 1600, size)
    engine.submit(request(prompt, samples, stops=frozenset()))
    position = 2 * SHAPE.n_layers * SHAPE.n_kv_heads * SHAPE.head_dim * 4  # keys and values, fp32
    page = engine.storage.keys[:, 0].nbytes + engine.storage.values[:, 0].nbytes
    assert page == size * position
    engine.step()  # the prompt is run and every first token drawn
    assert engine.pool.used * page == (3 + samples) * size * position
    assert engine.pool.holders.max() == samples
    stored = engine.storage.keys[:, engine.pool.holders == samples].clone()
    for _ in range(7):
        engine.step()
        assert engine.pool.used * page == (3 + samples) * size * position
    assert len(engine._rows) == samples
    assert torch.equal(engine.storage.keys[:, engine.pool.holders == samples], stored)  # no sample writes to what all read
    assert engine.pool.used * page < samples * len(prompt) * position
    finish(engine)
    assert engine.pool.used == 0


def test_nothing_enters_that_may_not_fit_to_its_end(model):
    # Pages of 4: 41 tokens take 11, and the 8 of 9 new ones that are stored take 2 a sample.
    engine = Engine(model, 8, 4 * 16, 4)
    numbers = [engine.submit(request(PROMPTS[5], 4, stops=frozenset())), engine.submit(request(PROMPTS[0], 1, stops=frozenset()))]
    engine.step()
    assert [row.source.id for row in engine._rows] == [numbers[0]] * 2  # a third would need 2 pages: 11 + 2 x 2 + 2 > 16
    assert engine.pool.used == 11 + 2 * 2
    while engine.busy:
        engine.step()
        assert engine.pool.spare >= 0


@pytest.mark.parametrize("samples", [1, 3])
def test_the_least_memory_that_is_taken_is_enough(model, samples):
    engine = Engine(model, 8, 4 * 13, 4)  # 41 positions and 8
    engine.submit(request(PROMPTS[5], samples, stops=frozenset()))
    assert len(finish(engine)) == samples
    with pytest.raises(UserError, match=r"one sample needs 52 tokens .* max_kv_tokens holds 48: raise it"):
        Engine(model, 8, 4 * 12, 4).submit(request(PROMPTS[5], samples))


def test_requests_keep_their_own_settings(model):
    kinds = [
        SAMPLING,
        dataclasses.replace(SAMPLING, temperature=0.0),
        SamplingConfig(4, 0.5, 0.8, 1),
        SamplingConfig(6, 2.0, 1.0, 3, 7),
    ]
    engine = Engine(model, 16, 960)
    for kind in kinds:
        engine.submit(request(PROMPTS[3], 2, kind))
    together = finish(engine)
    for number, kind in enumerate(kinds, 1):
        single = Engine(model, 16, 960)
        single.submit(request(PROMPTS[3], 2, kind))
        assert [together[number, k] for k in range(2)] == [*finish(single).values()]


def test_cancelled_requests_leave_at_once_and_change_nothing(model, alone):
    engine = Engine(model, 2, 480, 16)
    first, second, third = (engine.submit(request(PROMPTS[i], 3)) for i in (4, 5, 6))
    found = {}
    step(engine, found)
    engine.cancel(first)  # two samples run, one waits
    engine.cancel(third)
    engine.cancel(second, 2)  # not there yet: no matter
    finish(engine, found)
    assert [found[second, k] for k in range(3)] == alone[5, 16]
    assert not any(number == third for number, _ in found)
    assert engine.pool.used == 0


def test_what_other_requests_left_in_a_page_is_not_seen(model, alone):
    engine = Engine(model, 4, 96, 16)
    engine.storage.keys.fill_(torch.nan)
    engine.storage.values.fill_(torch.nan)
    engine.submit(request(PROMPTS[4], 3))
    assert [*finish(engine).values()] == alone[4, 16][:3]


def test_weights_that_give_no_numbers_are_named():
    broken = Transformer(SHAPE).requires_grad_(False)
    broken.norm.weight.fill_(torch.nan)
    engine = Engine(broken, 4, 96, 16)
    engine.submit(request(PROMPTS[2]))
    with pytest.raises(UserError, match="logits are not numbers"):
        engine.step()


def test_pages_are_counted():
    pool = PagePool(6)
    pages = pool.take(3)
    assert pages.tolist() == [3, 4, 5]  # prompts at the high end, what samples write at the low end
    run = pool.free_run(2)
    assert run.tolist() == [0, 1]
    pool.hold(run)
    assert (pool.used, pool.spare) == (5, 1)
    assert pool.free_run(2) is None
    pool.hold(pages)
    pool.release(pages)
    assert pool.used == 5
    with pytest.raises(AssertionError, match="fewer pages"):
        pool.take(2)
    pool.release(pages)
    assert (pool.used, pool.spare) == (2, 4)
    with pytest.raises(AssertionError, match="more often than held"):
        pool.release(pages)


def test_runs_begin_at_multiples_of_their_length():
    pool = PagePool(13)
    pool.hold(np.array([1]))
    assert [pool.free_run(n).tolist() for n in (1, 2, 4)] == [[0], [2, 3], [4, 5, 6, 7]]
    pool.hold(np.array([5]))
    assert pool.free_run(4).tolist() == [8, 9, 10, 11]
    assert pool.free_run(8) is None


def test_an_answer_of_any_length_reads_a_power_of_two():
    assert [pages_read(n, 8, 4) for n in (1, 4, 5, 8, 9, 16, 17, 32)] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert pages_read(17, 5, 4) == 5


def test_long_answers_of_many_lengths_side_by_side(model):
    """Every length is read as when alone, though runs are of 1, 2, 4, 8 and 16 pages, and one of 5 that memory forces."""
    torch.set_num_threads(1)
    lengths = (1, 3, 7, 17, 40, 55)
    settings_of = [SamplingConfig(n, 1.0, seed=n) for n in lengths]

    def drawn(numbers, pages):
        engine = Engine(model, 12, 4 * pages, 4)
        for i in numbers:
            engine.submit(request(PROMPTS[4], 2, settings_of[i], frozenset()))
        found = finish(engine)
        assert engine.pool.used == 0
        return [found[number, k] for number in range(1, len(numbers) + 1) for k in range(2)]

    single = [drawn([i], 80) for i in range(len(lengths))]
    assert drawn(range(len(lengths)), 80) == drawn(range(len(lengths)), 200) == [x for pair in single for x in pair]
    assert [len(x) for x in drawn([3], 40)] == [17, 17]
    forced = drawn([4], 20)  # 10 pages for the prompt, and for the answer 10 instead of 16
    assert [[t for t, _ in x] for x in forced] == [[t for t, _ in x] for x in single[4]]


def test_a_prompt_takes_pages_that_follow_each_other_where_it_can():
    pool = PagePool(9)
    pool.hold(np.array([3, 7]))
    assert pool.take(2).tolist() == [5, 6]
    assert pool.take(3).tolist() == [0, 1, 2]
    assert pool.take(2).tolist() == [4, 8]


def test_an_engine_without_room_is_refused(model):
    with pytest.raises(UserError, match="batch_size=0"):
        Engine(model, 0, 96)
    with pytest.raises(UserError, match="max_kv_tokens=63"):
        Engine(model, 1, 63)


def test_alternatives_and_the_prompts_own_scores_are_the_models(model):
    """Also beside others that ask for none, for prompts run together, and for each sample of one."""
    asked = dataclasses.replace(request(PROMPTS[3], 2), alternatives=4, scored=True)
    few = dataclasses.replace(request(PROMPTS[0]), alternatives=2, scored=True)
    engine = Engine(model, 6, 480, 16)
    numbers = [engine.submit(r) for r in (request(PROMPTS[4]), asked, few)]
    found = {}
    while engine.busy:
        for drawn in engine.step():
            found.setdefault((drawn.request, drawn.sample), []).append(drawn)
    assert all(d.alternatives == d.prompt == () for d in found[numbers[0], 0])
    for number, sample, put, count in ((numbers[1], 0, asked, 4), (numbers[1], 1, asked, 4), (numbers[2], 0, few, 2)):
        drawn = found[number, sample]
        tokens = [*put.prompt, *(d.token for d in drawn)]
        exact = model.logits(model(torch.tensor([tokens])))[0].double().log_softmax(-1)
        first, *later = drawn
        assert [(s.token, len(s.alternatives)) for s in first.prompt] == [(t, count) for t in put.prompt[1:]]
        assert not any(d.prompt for d in later)
        told = [(of.token, of.logprob, of.alternatives) for of in (*first.prompt, *drawn)]
        for scores, (token, logprob, alternatives) in zip(exact, told, strict=False):
            best, ids = scores.topk(count)
            assert logprob == pytest.approx(float(scores[token]), abs=1e-5)
            assert [i for i, _ in alternatives] == ids.tolist()
            assert [score for _, score in alternatives] == pytest.approx(best.tolist(), abs=1e-5)
            assert all(logprob == score for i, score in alternatives if i == token)  # to the bit: clients compare with ==


def test_a_long_prompt_is_scored_in_parts(model, monkeypatch):
    found = []
    for rows in (256, 7):
        monkeypatch.setattr(likeliest, "_ROWS", rows)
        engine = Engine(model, 4, 480, 16)
        engine.submit(dataclasses.replace(request(PROMPTS[5]), alternatives=1, scored=True))
        found.append(engine.step()[0].prompt)
    assert [s.token for s in found[0]] == PROMPTS[5][1:]
    assert [s.logprob for s in found[1]] == pytest.approx([s.logprob for s in found[0]], abs=1e-5)
    assert [(s.token, [i for i, _ in s.alternatives]) for s in found[1]] == [
        (s.token, [i for i, _ in s.alternatives]) for s in found[0]
    ]
