"""The same weights and token rows for herd and for TRL: what the comparisons of this folder have in common.

TRL takes text. A tokenizer whose words are token ids (``<17> <4>``) hands it exactly the rows that herd gets. What TRL calls the
prompt ends with the assistant's header, which in herd is the untrained start of a response.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from herd.model.convert import to_hf
from herd.model.transformer import Transformer
from herd.training.sequences import Group, TrainingSequence

VOCABULARY, PAD, EOT = 2048, 0, 1
HEADER = (2, 3, 4, 5)  # start of header, role, end of header, line breaks


def groups(sizes: Sequence[tuple[int, int, int]], seed: int = 0) -> list[Group]:
    """Pairs of random tokens: (prompt, chosen, rejected) tokens, headers in the responses and not trained.

    All else of a response is trained and counts in the preference term, its end of turn included, as in TRL.
    """
    generator = np.random.default_rng(seed)

    def response(size: int) -> TrainingSequence:
        tokens = np.array([*HEADER, *generator.integers(6, VOCABULARY, size - len(HEADER) - 1), EOT])
        trained = np.arange(size) >= len(HEADER)
        return TrainingSequence(tokens, trained, trained)

    return [Group(generator.integers(6, VOCABULARY, p), (response(c), response(r))) for p, c, r in sizes]


def as_text(tokens: Sequence[int] | np.ndarray) -> str:
    """Tokens as the words of :func:`word_tokenizer`, each with a blank before it."""
    return "".join(f" <{int(t)}>" for t in tokens)


def trl_rows(pairs: Sequence[Group]) -> list[dict[str, str]]:
    """The pairs as TRL takes them."""
    rows = []
    for pair in pairs:
        chosen, rejected = (as_text(response.tokens[len(HEADER) :]) for response in pair.responses)
        rows.append({"prompt": as_text([*pair.prompt, *HEADER]), "chosen": chosen, "rejected": rejected})
    return rows


def word_tokenizer() -> Any:
    """A Hugging Face tokenizer that reads ids as words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCABULARY)}, unk_token=f"<{PAD}>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"<{EOT}>", pad_token=f"<{PAD}>")


def as_llama(model: Transformer) -> Any:
    """The same weights as Hugging Face's LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    state, settings = to_hf(model.state_dict(), model.config)
    llama = LlamaForCausalLM(LlamaConfig(**{**settings, "attn_implementation": "sdpa", "use_cache": False}))
    llama.to(model.norm.weight.dtype)
    missing, unexpected = llama.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    llama.tie_weights()
    return llama


def dpo_trainer(policy: Any, reference: Any, pairs: Sequence[Group], **options: Any) -> Any:
    """TRL's trainer over the pairs, on the CPU, nothing cut."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        **{"max_length": None, "use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
        | {"disable_tqdm": True, "save_strategy": "no"}
        | options,
    )
    rows = Dataset.from_list(trl_rows(pairs))
    return DPOTrainer(policy, reference, args=config, train_dataset=rows, processing_class=word_tokenizer())


def trl_batch(trainer: Any, indices: Sequence[int]) -> dict[str, Any]:
    """Rows of the trainer's data set, collated and padded as it does it."""
    return trainer.data_collator([trainer.train_dataset[int(i)] for i in indices])
