"""One file a task; importing this package enters them all into the registry."""

from herd.evaluation.tasks import (
    bits_per_byte,
    compression,
    documentation_choice,
    needle,
    ngram_baselines,
    reward_accuracy,
    win_rate,
)

__all__ = [
    "bits_per_byte",
    "compression",
    "documentation_choice",
    "needle",
    "ngram_baselines",
    "reward_accuracy",
    "win_rate",
]
