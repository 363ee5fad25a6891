"""Settings of `herd evaluate`."""

from dataclasses import dataclass, field

from herd.config.errors import UserError
from herd.corpus.mixture import MixConfig
from herd.dialog.dialects import DIALECTS
from herd.evaluation.bench import TASKS, HeldoutConfig
from herd.evaluation.tasks.bits_per_byte import BitsPerByteConfig
from herd.evaluation.tasks.compression import CompressionConfig
from herd.evaluation.tasks.documentation_choice import DocumentationChoiceConfig
from herd.evaluation.tasks.needle import NeedleConfig
from herd.evaluation.tasks.ngram_baselines import NgramBaselinesConfig
from herd.evaluation.tasks.reward_accuracy import RewardAccuracyConfig
from herd.evaluation.tasks.win_rate import WinRateConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """Schema of conf/evaluate.yaml."""

    seed: int
    tasks: list[str]  # in the order they report; names as in the sections below
    device: str  # cpu, cuda, cuda:1, mps
    threads: int  # CPU threads of torch; 0 leaves its own choice
    batch_tokens: int  # tokens of one forward batch, padding included
    resamples: int  # of every bootstrap
    dialect: str  # of messages to a model that does not say in which it was trained: meta, meta_tag, hf, torchtune
    mix: MixConfig  # weights of the domains in means and in the n-gram counts, as in pre-training
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    bits_per_byte: BitsPerByteConfig = field(default_factory=BitsPerByteConfig)
    ngram_baselines: NgramBaselinesConfig = field(default_factory=NgramBaselinesConfig)
    documentation_choice: DocumentationChoiceConfig = field(default_factory=DocumentationChoiceConfig)
    reward_accuracy: RewardAccuracyConfig = field(default_factory=RewardAccuracyConfig)
    win_rate: WinRateConfig = field(default_factory=WinRateConfig)
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)

    def __post_init__(self) -> None:
        DIALECTS.get(self.dialect)
        if not self.tasks:
            raise UserError(f"evaluate.tasks is empty, nothing would be measured: name some of {', '.join(TASKS.names())}.")
        for task in self.tasks:
            TASKS.get(task)
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"evaluate.tasks={self.tasks} names a task twice.")
        if self.batch_tokens < 1 or self.resamples < 100 or self.threads < 0:
            raise UserError("evaluate: need batch_tokens >= 1, resamples >= 100 and threads >= 0.")

    @property
    def scores_answers(self) -> bool:
        """Whether models answer held-out prompts and a reward model judges them."""
        return "win_rate" in self.tasks and bool(self.win_rate.pairs or self.win_rate.averages)
