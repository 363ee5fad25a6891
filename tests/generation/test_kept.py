"""Answers kept as they are drawn: a run that was killed goes on with what is missing, and comes to the same bits."""

import dataclasses

import pytest
import torch

from herd.generation.choose import SamplingConfig
from herd.generation.kept import KeptSampler
from herd.generation.sampler import Asked, OwnSampler, Sample
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

SHAPE = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=60, max_seq_len=64, tie_embeddings=True)
CONFIG = SamplingConfig(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=7)
STOPS, K = frozenset({5, 9, 11}), 3


class Killed(Exception):
    """Stands in for a sudden end."""


class Drawing:
    """Our own sampler; counts the prompts that it is given and may be killed when some of them are done."""

    def __init__(self, killed_after: int = 10**9) -> None:
        model = Transformer(SHAPE).requires_grad_(False)
        model.init_weights(0)
        self.sampler, self.killed_after, self.asked = OwnSampler(model, 8), killed_after, 0

    def draw(self, asked, done=None):
        self.asked += len(asked.prompts)
        ended = 0

        def count(place: int, samples: list[Sample]) -> None:
            nonlocal ended
            done(place, samples)
            ended += 1
            if ended == self.killed_after:
                raise Killed

        return self.sampler.draw(asked, count)


@pytest.fixture
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 60, (1 + i % 7,), generator=generator).tolist() for i in range(14)]


def kept(folder, killed_after: int = 10**9, writer: str = "generator") -> KeptSampler:
    sampler = Drawing(killed_after)
    return KeptSampler(lambda: sampler, folder, writer)


def answers_file(folder):
    (path,) = folder.glob("answers-*.jsonl")
    return path


def test_killed_and_started_again_gives_the_bits_of_an_undisturbed_run(prompts, tmp_path, capsys):
    whole = Drawing().sampler.draw(Asked(prompts, K, CONFIG, STOPS))
    assert kept(tmp_path / "whole").draw(Asked(prompts, K, CONFIG, STOPS)) == whole
    assert capsys.readouterr().err.count("from before") == 0
    for n in (1, 4, 6):  # three kills
        with pytest.raises(Killed):
            kept(tmp_path / "killed", n).draw(Asked(prompts, K, CONFIG, STOPS))
    again, told = kept(tmp_path / "killed"), []
    assert again.draw(Asked(prompts, K, CONFIG, STOPS), lambda place, samples: told.append((place, samples))) == whole
    assert again.opened().asked == len(prompts) - 11
    assert sorted(place for place, _ in told) == list(range(14)) and all(samples == whole[place] for place, samples in told)
    assert "  sampling (generator): the answers to 11 of 14 prompts are there from before\n" in capsys.readouterr().err
    finished = kept(tmp_path / "killed")
    assert finished.draw(Asked(prompts, K, CONFIG, STOPS)) == whole and finished.opened().asked == 0


@pytest.mark.parametrize("cut", [1, 2, 40, "the newline alone", "all of it"])
def test_a_half_written_line_is_dropped_and_drawn_again(prompts, tmp_path, cut):
    whole = kept(tmp_path).draw(Asked(prompts, K, CONFIG, STOPS))
    path = answers_file(tmp_path)
    content = path.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    size = {"the newline alone": len(last) - 1, "all of it": 0}.get(cut, cut)
    path.write_bytes(content.removesuffix(last) + last[:size])
    again = kept(tmp_path)
    assert again.draw(Asked(prompts, K, CONFIG, STOPS)) == whole
    assert again.opened().asked == 1
    assert path.read_bytes() == content


def test_a_damaged_line_is_told_and_drawn_again(prompts, tmp_path, capsys):
    whole = kept(tmp_path).draw(Asked(prompts, K, CONFIG, STOPS))
    path = answers_file(tmp_path)
    content = bytearray(path.read_bytes())
    for place in (content.index(b"[["), content.rindex(b"[[") + 2):  # in the first line and the last
        content[place] = ord("7")
    path.write_bytes(content + b"\xff\xfe nonsense\n")
    again = kept(tmp_path)
    assert again.draw(Asked(prompts, K, CONFIG, STOPS)) == whole
    assert again.opened().asked == 2
    told = capsys.readouterr().err
    assert "12 of 14 prompts are there from before; 3 damaged lines dropped, to be drawn again" in told
    assert kept(tmp_path, 1).draw(Asked(prompts, K, CONFIG, STOPS)) == whole  # nothing is drawn, so nothing is killed
    assert "damaged" not in capsys.readouterr().err


def test_answers_of_other_models_settings_and_numbers_are_not_taken(prompts, tmp_path):
    kept(tmp_path).draw(Asked(prompts, K, CONFIG, STOPS))
    prompts = prompts[:2]
    others = [("another", K, CONFIG, STOPS), ("generator", K + 1, CONFIG, STOPS), ("generator", K, CONFIG, (5,))]
    for name in ("max_new_tokens", "temperature", "top_p", "seed", "top_k"):
        changed = dataclasses.replace(CONFIG, **{name: {"temperature": 0.5, "top_p": 0.5}.get(name, 9)})
        others.append(("generator", K, changed, STOPS))
    for writer, samples, config, stops in others:
        other = kept(tmp_path, writer=writer)
        found = other.draw(Asked(prompts, samples, config, frozenset(stops)))
        assert other.opened().asked == len(prompts)
        assert found == other.opened().sampler.draw(Asked(prompts, samples, config, frozenset(stops)))


def test_equal_prompts_are_drawn_once(prompts, tmp_path):
    sampler = kept(tmp_path)
    twice = sampler.draw(Asked([*prompts, *prompts], K, CONFIG, STOPS))
    assert sampler.opened().asked == len(prompts)
    assert twice[: len(prompts)] == twice[len(prompts) :] == Drawing().sampler.draw(Asked(prompts, K, CONFIG, STOPS))
