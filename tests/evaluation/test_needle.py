"""Needle scoring on hand-made models whose answer is known beforehand."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from herd.corpus.tokenizer import Tokenizer
from herd.evaluation.bench import Bench
from herd.evaluation.scoring import LanguageModel
from herd.evaluation.tasks.needle import NAME, Needle, NeedleConfig

CONFIG = NeedleConfig(lengths=[96, 192], depths=[0.0, 0.5, 1.0], trials=10, distractors=3)


class HandMade(torch.nn.Module):
    """Hidden states are scores over the vocabulary themselves."""

    def __init__(self, vocab_size: int, max_seq_len: int = 256) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_seq_len=max_seq_len)
        self.output_weight = torch.eye(vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class Induction(HandMade):
    """Predicts what followed the last earlier occurrence of the last three tokens, within ``reach`` tokens."""

    def __init__(self, vocab_size: int, reach: int = 10**6) -> None:
        super().__init__(vocab_size)
        self.reach = reach

    def forward(self, tokens: Tensor, positions: Tensor | None = None, mask: object = None) -> Tensor:
        scores = torch.zeros(*tokens.shape, len(self.output_weight))
        for b, row in enumerate(tokens.tolist()):
            last: dict[tuple[int, ...], int] = {}
            for i in range(2, len(row)):
                key = tuple(row[i - 2 : i + 1])
                seen = last.get(key)
                if seen is not None and i - seen <= self.reach:
                    scores[b, i, row[seen + 1]] = 20.0
                last[key] = i
        return scores


class Blind(HandMade):
    """The same scores everywhere, whatever was read."""

    def __init__(self, vocab_size: int, spread: float) -> None:
        super().__init__(vocab_size)
        self.scores = spread * torch.randn(vocab_size, generator=torch.Generator().manual_seed(0))

    def forward(self, tokens: Tensor, positions: Tensor | None = None, mask: object = None) -> Tensor:
        return self.scores.expand(*tokens.shape, -1)


def run(bench: Bench, model: HandMade, config: NeedleConfig = CONFIG) -> tuple[dict, Needle]:
    task = Needle(config, bench)
    task.language_model(LanguageModel("it", model, torch.device("cpu")))  # type: ignore[arg-type]
    return task.finish().results.get("it", {}).get(NAME, {}), task


def test_a_model_that_copies_finds_every_needle(bench: Bench, tokenizer: Tokenizer) -> None:
    metrics, _ = run(bench, Induction(tokenizer.vocab_size))
    assert metrics["acc,none"] == 1.0
    assert metrics["exact_match,none"] == 1.0
    assert metrics["acc_interval,none"][0] > 0.9
    assert [(c["length"], c["depth"], c["n"]) for c in metrics["grid"]] == [
        (n, d, 10) for n in (96, 192) for d in (0.0, 0.5, 1.0)
    ]


def test_a_short_sighted_model_fails_where_the_needle_is_far(bench: Bench, tokenizer: Tokenizer) -> None:
    metrics, _ = run(bench, Induction(tokenizer.vocab_size, reach=60))
    found = {(c["length"], c["depth"]): c["acc,none"] for c in metrics["grid"]}
    assert found[192, 1.0] == 1.0
    assert found[96, 1.0] == 1.0
    assert found[192, 0.0] == 0.0
    assert found[192, 0.5] == 0.0


def test_a_blind_model_is_at_chance(bench: Bench, tokenizer: Tokenizer) -> None:
    config = NeedleConfig(lengths=[96], depths=[0.5], trials=400, distractors=3)
    metrics, task = run(bench, Blind(tokenizer.vocab_size, spread=1.0), config)
    low, high = metrics["acc_interval,none"]
    assert low < task.result.notes["chance"] == 0.25 < high
    assert metrics["exact_match,none"] < 0.05
    indifferent, _ = run(bench, Blind(tokenizer.vocab_size, spread=0.0), config)
    assert indifferent["acc,none"] == 0.0


def test_the_needle_lies_at_its_depth_and_the_row_has_its_length(bench: Bench, tokenizer: Tokenizer) -> None:
    _, task = run(bench, Blind(tokenizer.vocab_size, 1.0))
    for trial in task.trials:
        context = trial.request.context
        longest = max(map(len, trial.request.choices))
        assert len(context) + longest == trial.length
        text, value = tokenizer.decode(context[1:]), tokenizer.decode(trial.request.choices[0])
        assert text.count("The value of") == 2
        assert text.endswith(" is")
        at = text.index("The value of")
        assert text[at:].split("\n")[0].endswith(f" is{value}.")
        assert text.split("The value of")[1].split(" is")[0] == text.split("The value of")[2].split(" is")[0]  # the same key
        hay = len(text) - (text.rindex("\nThe value of") - at)  # roughly: what follows is the question
        assert hay >= 0
        tail = text.rindex("\nThe value of") - at  # characters from the needle to the question
        assert abs((1 - trial.depth) - (tail - 30) / max(text.rindex("\nThe value of") - 30, 1)) < 0.25
        others = [tokenizer.decode(choice) for choice in trial.request.choices[1:]]
        assert not any(other in text for other in others)


def test_lengths_beyond_the_model_are_left_out(bench: Bench, tokenizer: Tokenizer) -> None:
    model = Induction(tokenizer.vocab_size)
    model.config.max_seq_len = 128
    metrics, _ = run(bench, model)
    assert {cell["length"] for cell in metrics["grid"]} == {96}
    model.config.max_seq_len = 64
    assert run(bench, model)[0] == {}


def test_every_trial_is_drawn_anew_and_the_same_again_by_seed(bench: Bench) -> None:
    """Trials that shared a text or a value would make the interval over all cells too narrow."""
    task = Needle(CONFIG, bench)
    assert [t.request for t in task.trials] == [t.request for t in Needle(CONFIG, bench).trials]
    assert len({t.request.context for t in task.trials}) == len(task.trials)
    first_values = [t.request.choices for t in task.trials if t.length == 96 and t.depth == 0.0]
    last_values = [t.request.choices for t in task.trials if t.length == 96 and t.depth == 1.0]
    assert sum(a == b for a, b in zip(first_values, last_values, strict=True)) <= 1


@pytest.mark.parametrize("bad", [{"depths": [1.5]}, {"lengths": [8]}, {"trials": 0}])
def test_bad_grids_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="needle"):
        NeedleConfig(**bad)
