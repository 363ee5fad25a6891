"""Held-out preference pairs, rendered once, on which any number of reward models are measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from herd.corpus.tokenizer import Tokenizer
from herd.dialog.preferences import Grade, Preference, PreferenceFilter
from herd.dialog.rows import Counted, PairLength
from herd.model.heads import RewardModel
from herd.training.ranking import RankingAccuracy, ranking_accuracy
from herd.training.reward import Comparison, comparisons, score_groups
from herd.training.sequences import Group

EVERY_GRADE = PreferenceFilter(grades=[grade.value for grade in Grade], max_similarity=1.0)


@dataclass(frozen=True)
class HeldoutPairs:
    """Chosen and rejected responses of one set of preferences."""

    rows: list[Preference]
    pairs: list[Comparison]  # of each row; an edited response is left out
    lengths: list[PairLength]  # of these pairs and of those that do not fit

    @classmethod
    def read(
        cls, rows: Iterable[Preference], chosen_by: PreferenceFilter, tokenizer: Tokenizer, window: int, dialect: str = "meta"
    ) -> HeldoutPairs:
        """The pairs that `chosen_by` keeps and that fit `window` tokens."""
        kept, pairs, counted = [], [], Counted()
        for row in chosen_by.select(rows, Counted()):
            pair = comparisons([replace(row, edited=None)], tokenizer, window, counted, dialect=dialect)
            if pair:
                kept.append(row)
                pairs += pair
        return cls(kept, pairs, counted.lengths)

    def scores(self, model: RewardModel) -> np.ndarray:
        """(n, 2) rewards of chosen and rejected."""
        groups = [Group.of(pair.responses, pair.prompt_tokens) for pair in self.pairs]
        return np.array(score_groups(model, groups, batch_size=32)).reshape(-1, 2)

    def accuracy(self, scores: np.ndarray, which: Sequence[int] | None = None) -> RankingAccuracy | None:
        """How well `scores` (n, 2) rank the pairs, or those of the indices `which`; None of no pair."""
        chosen = range(len(self.rows)) if which is None else which
        if not chosen:
            return None
        lengths = np.array([self.pairs[i].response_tokens for i in chosen])
        return ranking_accuracy(scores[list(chosen)], lengths, [self.rows[i].prompt_key for i in chosen])
