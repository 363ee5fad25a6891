"""A model of ours as a judge: the probability that it gives to each answer."""

from __future__ import annotations

from collections.abc import Sequence

from herd.alignment.choices import choice_probabilities, longest
from herd.alignment.fine_tuning import load_tokenizer, load_writer
from herd.alignment.quality.judges import JudgeConfig, Question, Verdict
from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.model.transformer import Transformer
from herd.runs.progress import progress
from herd.runs.stage import Inputs

_CHUNK = 16  # questions between two moves of the progress bar


class ModelJudge:
    """Reads the question as a user's message and weighs the answers as the assistant's."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, batch_size: int, dialect: str = "meta") -> None:
        self._model, self._tokenizer, self._batch_size, self._dialect = model, tokenizer, batch_size, dialect

    @classmethod
    def open(cls, config: JudgeConfig, inputs: Inputs, dialect: str) -> ModelJudge:
        """UserError when the model or its tokenizer was not given."""
        judge = inputs.get("judge")
        if judge is None or inputs.get("tokens") is None:
            raise UserError("judge.kind=model needs inputs.judge=FOLDER (a chat model) and inputs.tokens=FOLDER (its tokenizer).")
        return cls(load_writer("prune", "judge", judge), load_tokenizer(inputs), config.batch_size, dialect)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        verdicts: list[Verdict] = [Verdict((), "too long for the judge")] * len(questions)
        window = self._model.config.max_seq_len
        by_answers: dict[tuple[str, ...], list[int]] = {}
        for i, question in enumerate(questions):
            if longest(question.text, question.answers, self._tokenizer, self._dialect) <= window:
                by_answers.setdefault(question.answers, []).append(i)
        with progress("judging", len(questions), "questions") as bar:
            for answers, indices in by_answers.items():
                for first in range(0, len(indices), _CHUNK):
                    chunk = indices[first : first + _CHUNK]
                    texts = [questions[i].text for i in chunk]
                    found = choice_probabilities(self._model, self._tokenizer, texts, answers, self._batch_size, self._dialect)
                    for i, shares in zip(chunk, found.tolist(), strict=True):
                        verdicts[i] = Verdict(tuple(shares))
                    bar.advance(len(chunk))
        return verdicts
