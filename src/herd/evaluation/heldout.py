"""Held-out documents and what a model makes of each: the text behind bits per byte and the n-gram baselines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herd.corpus.shards import TokenShards
from herd.evaluation.scoring import LanguageModel, batches
from herd.objectives.cross_entropy import token_logprobs
from herd.runs.seeds import stream


@dataclass(frozen=True)
class HeldoutDocuments:
    """The same held-out documents for every model and baseline."""

    domain: str
    documents: tuple[np.ndarray, ...]  # int64 token ids: begin of text, text, end of text (unless the document is cut)
    text_bytes: np.ndarray  # (documents,) UTF-8 bytes of the text; special tokens count 0

    @property
    def targets(self) -> np.ndarray:
        """(documents,) predicted tokens: all but the first."""
        return np.array([len(document) - 1 for document in self.documents])


def heldout_documents(
    shards: TokenShards, domain: str, token_bytes: np.ndarray, limit_tokens: int, document_tokens: int, seed: int
) -> HeldoutDocuments:
    """Documents of the held-out split in a seeded order until ``limit_tokens`` are gathered.

    Args:
        token_bytes: (V,) bytes of text that each id stands for, 0 for special tokens.
        limit_tokens: 0 takes all documents.
        document_tokens: longer documents are cut, so that a few long ones do not decide the score; 0 cuts none.
    """
    source = shards.source("heldout", domain)
    order = stream(seed, "evaluation", "heldout", domain).permutation(source.documents)
    documents: list[np.ndarray] = []
    gathered = 0
    for i in order:
        start, stop = int(source.offsets[i]), int(source.offsets[i + 1])
        stop = min(stop, start + document_tokens) if document_tokens else stop
        documents.append(source.check_tokens(np.asarray(source.tokens[start:stop])).astype(np.int64))
        gathered += stop - start
        if limit_tokens and gathered >= limit_tokens:
            break
    return HeldoutDocuments(domain, tuple(documents), np.array([token_bytes[d].sum() for d in documents], dtype=np.int64))


@torch.inference_mode()
def document_nll(lm: LanguageModel, documents: Sequence[np.ndarray], context_tokens: int) -> np.ndarray:
    """Summed negative log-likelihood of each document, (documents,) float64 nats.

    A document is read from its start in windows of ``context_tokens``, every token but the first predicted once. A
    window begins with the last token of the one before; beyond that windows share no context.
    """
    window = min(context_tokens, lm.max_seq_len)
    pieces = [(d, doc[i : i + window + 1]) for d, doc in enumerate(documents) for i in range(0, len(doc) - 1, window)]
    pieces.sort(key=lambda piece: len(piece[1]))
    total = np.zeros(len(documents))
    for batch in batches([len(tokens) - 1 for _, tokens in pieces], lm.batch_tokens):
        members = [pieces[i] for i in batch]
        width = max(len(tokens) for _, tokens in members) - 1
        inputs = torch.zeros(len(members), width, dtype=torch.long)
        targets = torch.full((len(members), width), -100, dtype=torch.long)  # padding, on the right, predicts nothing
        for row, (_, tokens) in enumerate(members):
            ids = torch.from_numpy(tokens)
            inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        hidden = lm.model(inputs.to(lm.device))
        logprobs = token_logprobs(hidden, lm.model.output_weight, targets.to(lm.device))
        np.add.at(total, [d for d, _ in members], -logprobs.double().sum(dim=1).cpu().numpy())
        lm.tokens_read += int((targets >= 0).sum())
    return total
