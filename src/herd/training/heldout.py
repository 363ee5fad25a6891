"""Loss on held-out text, by domain: the same rows for every model, so that losses compare."""

import math
from collections.abc import Container, Mapping
from pathlib import Path

import torch

from herd.config.errors import UserError
from herd.corpus.packing import IGNORE, evaluation_rows
from herd.corpus.shards import TokenShards
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy, token_logprobs
from herd.runs.atomic import write_text

_TOKENS_AT_ONCE = 4096  # of one forward pass


@torch.no_grad()
def heldout_loss(
    model: Transformer, shards: TokenShards, seq_len: int, limit_tokens: int = 0, split: str = "heldout"
) -> dict[str, dict[str, float]]:
    """Summed loss of ``model`` on each domain's held-out text, in float32.

    Every document is cut into windows of ``seq_len`` tokens from its start, and no window sees another.

    Args:
        seq_len: longest context, tokens.
        limit_tokens: tokens scored in all, shared equally by the domains; 0 = everything. Which ones depends on the
        shards and
            ``seq_len`` alone.

    Returns:
        domain -> {"nll": nats, "tokens": targets scored, "bytes": UTF-8 bytes of text behind them}.
    """
    domains = shards.domains(split)
    limit = max(1, limit_tokens // max(1, len(domains))) if limit_tokens else None
    device = model.output_weight.device
    result: dict[str, dict[str, float]] = {}
    with torch.autocast(device.type, enabled=False):
        for domain in domains:
            total, tokens, size = 0.0, 0, 0
            source = shards.source(split, domain)
            for rows in evaluation_rows(source, seq_len, limit, max(1, _TOKENS_AT_ONCE // seq_len)):
                tokens += rows.target_count
                size += sum(rows.bytes)
                rows = rows.to(device)
                hidden = model(rows.tokens, rows.positions, Documents(rows.lengths))
                total += linear_cross_entropy(hidden, model.output_weight, rows.targets).item()
            result[domain] = {"nll": total, "tokens": tokens, "bytes": size}
    return result


@torch.no_grad()
def document_losses(
    model: Transformer, shards: TokenShards, seq_len: int, limit_tokens: int = 0, split: str = "heldout"
) -> list[tuple[str, int, float, int]]:
    """The text of :func:`heldout_loss`, by document: (domain, document, nats, targets scored), in the order of the shards."""
    domains = shards.domains(split)
    limit = max(1, limit_tokens // max(1, len(domains))) if limit_tokens else None
    device = model.output_weight.device
    found: list[tuple[str, int, float, int]] = []
    with torch.autocast(device.type, enabled=False):
        for domain in domains:
            source = shards.source(split, domain)
            nll, tokens = torch.zeros(source.documents, dtype=torch.float64), torch.zeros(source.documents, dtype=torch.int64)
            for rows in evaluation_rows(source, seq_len, limit, max(1, _TOKENS_AT_ONCE // seq_len)):
                assert rows.owners is not None
                owners = rows.owners.flatten()
                moved = rows.to(device)
                hidden = model(moved.tokens, moved.positions, Documents(moved.lengths))
                lost = -token_logprobs(hidden, model.output_weight, moved.targets).flatten().cpu().double()
                counted = rows.targets.flatten() != IGNORE
                nll.index_add_(0, owners[counted], lost[counted])
                tokens.index_add_(0, owners[counted], torch.ones_like(owners[counted]))
            found += [(domain, i, float(nll[i]), int(tokens[i])) for i in range(source.documents) if tokens[i]]
    return found


def write_document_losses(path: Path, model: Transformer, shards: TokenShards, seq_len: int, limit_tokens: int) -> None:
    """Write :func:`document_losses` as CSV: domain, document, nll, tokens."""
    rows = document_losses(model, shards, seq_len, limit_tokens)
    write_text(path, "".join(["domain,document,nll,tokens\n", *(f"{d},{i},{nll!r},{n}\n" for d, i, nll, n in rows)]))


def loss_by_domain(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Nats per token of each domain."""
    return {domain: score["nll"] / score["tokens"] for domain, score in scores.items()}


def bits_per_byte(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Bits per UTF-8 byte of each domain: comparable over tokenizers."""
    return {domain: score["nll"] / math.log(2) / score["bytes"] for domain, score in scores.items()}


def mixed_loss(scores: Mapping[str, Mapping[str, float]], weights: Mapping[str, float]) -> float:
    """Nats per token, each domain counted by its share in ``weights``.

    Raises:
        UserError: a domain with weight has no held-out text.
    """
    losses = loss_by_domain(scores)
    check_domains(losses.keys(), weights)
    total = sum(weights.values())
    return sum(weight * losses[domain] for domain, weight in weights.items() if weight > 0) / total


def check_domains(available: Container[str], weights: Mapping[str, float]) -> None:
    """Refuse weight on a domain without held-out text (UserError)."""
    missing = sorted(d for d, weight in weights.items() if weight > 0 and d not in available)
    if missing:
        raise UserError(
            f"The mix gives weight to '{missing[0]}', of which there is no held-out text: "
            "curate more of it, or set its weight to 0."
        )
