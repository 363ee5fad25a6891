"""What the tokenizer makes of held-out text: characters (and bytes) per token, by domain. No model takes part."""

from dataclasses import dataclass

import numpy as np

from herd.evaluation.bench import TASKS, BaseTask, Bench, score
from herd.runs.seeds import stream
from herd.runs.statistics import bootstrap_ratio

NAME = "compression"


@dataclass(frozen=True)
class CompressionConfig:
    """Nothing to choose: the text is that of `heldout`."""


@TASKS.register(NAME)
class Compression(BaseTask):
    """``compression_<domain>`` and ``compression`` (all domains in one), under the label ``tokenizer``."""

    def __init__(self, config: CompressionConfig, bench: Bench) -> None:
        super().__init__()
        everything: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for domain, heldout in bench.heldout.items():
            texts = [bench.tokenizer.decode(d.tolist(), skip_special_tokens=True) for d in heldout.documents]
            characters = np.array([len(text) for text in texts])
            tokens = np.array([(bench.token_bytes[d] > 0).sum() for d in heldout.documents])
            everything.append((characters, heldout.text_bytes, tokens))
            self._enter(bench, f"{NAME}_{domain}", everything[-1])
        self._enter(bench, NAME, tuple(np.concatenate(part) for part in zip(*everything, strict=True)))  # type: ignore[arg-type]

    def _enter(self, bench: Bench, task: str, counts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        characters, text_bytes, tokens = counts
        for name, amount in (("characters_per_token", characters), ("bytes_per_token", text_bytes)):
            interval = bootstrap_ratio(amount, tokens, stream(bench.seed, task), bench.resamples)
            self.result.add("tokenizer", task, score(name, amount.sum() / tokens.sum(), interval))
        self.result.n_samples[task] = len(tokens)
