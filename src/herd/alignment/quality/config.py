"""Schema of conf/prune.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from herd.alignment.quality.cleaning import CleaningConfig
from herd.alignment.quality.decontamination import DecontaminationConfig
from herd.alignment.quality.difficulty import DifficultyConfig
from herd.alignment.quality.embeddings import EmbeddingConfig
from herd.alignment.quality.judges import JudgeConfig
from herd.alignment.quality.rating import RatingConfig
from herd.alignment.quality.semantic import DedupConfig
from herd.alignment.quality.topics import TopicConfig
from herd.config.errors import UserError
from herd.dialog.dialects import DIALECTS


@dataclass(frozen=True)
class PruneConfig:
    """What `herd prune` does, and how."""

    seed: int  # of who stays where chance decides, and of clusters
    steps: list[str]  # names, in the order in which they act; one that is left out does nothing
    dialect: str  # for models, how messages become tokens: meta, meta_tag, hf, torchtune
    cleaning: CleaningConfig
    topics: TopicConfig
    judge: JudgeConfig
    rating: RatingConfig
    difficulty: DifficultyConfig
    embedding: EmbeddingConfig
    dedup: DedupConfig
    decontamination: DecontaminationConfig

    def __post_init__(self) -> None:
        from herd.alignment.quality.steps import STEPS

        DIALECTS.get(self.dialect)
        for name in self.steps:
            STEPS.get(name)
        if not self.steps or len(set(self.steps)) < len(self.steps):
            raise UserError(f"steps: at least one of {', '.join(STEPS.names())}, each once at most.")
        by_topic = self.rating.within == "topic"
        if "rating" in self.steps and by_topic and "topics" not in self.steps[: self.steps.index("rating")]:
            raise UserError("rating.within=topic needs the step `topics` before `rating`.")
