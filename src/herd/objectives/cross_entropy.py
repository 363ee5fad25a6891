"""Cross-entropy of an output head without its full logits.

At a vocabulary of 128,256 the logits of one 8,192-token row take 4.2 GB in float32, more than the activations of many
layers. Both functions go through the positions in chunks; gradients are written out, so a chunk's logits live only
while it is at work.
"""

from typing import Any

import torch
from torch import Tensor

from herd.products import operand, product_dtype

IGNORE_INDEX = -100  # target of a position that does not count

# 2^19 logits a chunk: 2 MB in float32, what one core's cache holds. At least 64 positions, for the matrix products.
_CHUNK_LOGITS = 2**19


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None, losses: Tensor | None = None
) -> Tensor:
    """Summed negative log-likelihood of ``targets`` under ``softmax(hidden @ weight.T)``.

    Gradients are computed during the forward pass, chunk by chunk, and kept instead of logits: three matrix products
    in all, as many as the plain version. Under autocast the products run in the autocast type, softmax and sums in
    float32.

    Args:
        hidden: (..., dim).
        weight: (vocab_size, dim).
        targets: (...) int64; -100 is left out.
        chunk: positions at a time; None chooses by vocabulary size.
        losses: (positions,) to be filled with each position's own loss, 0 at -100; a record, without gradient.

    Returns:
        Scalar, nats, float32 (float64 for float64 inputs). Divide by the number of targets for a mean.
    """
    return _summed(hidden, weight, targets, 0.0, chunk, losses)[0]


def linear_cross_entropy_with_z(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk: int | None = None, losses: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`linear_cross_entropy` plus ``z_loss`` times the summed (log sum exp of the logits)^2 of the positions that count.

    The added term keeps the softmax's normaliser near 1, so that logits do not drift (PaLM, Chowdhery et al. 2022, section
    5, with z_loss 1e-4; OLMo 2 takes 1e-5).

    Returns:
        The whole loss, differentiable, and the added term alone, not differentiable.
    """
    return _summed(hidden, weight, targets, z_loss, chunk, losses)


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """Log-probability of each target under ``softmax(hidden @ weight.T)``; differentiable.

    The backward pass recomputes each chunk's logits, since the gradient of every position arrives only then.

    Args:
        hidden: (..., dim).
        weight: (vocab_size, dim).
        targets: (...) int64; at -100 the result is 0.
        chunk: positions at a time; None chooses by vocabulary size.

    Returns:
        (...), nats, float32 (float64 for float64 inputs).
    """
    return _TokenLogprobs.apply(hidden, weight, targets, chunk or _default_chunk(weight))


def _summed(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk: int | None, losses: Tensor | None
) -> tuple[Tensor, Tensor]:
    if not torch.is_grad_enabled():  # the function below is told what requires a gradient, not whether any is taken
        hidden, weight = hidden.detach(), weight.detach()
    total, added = _SummedLoss.apply(hidden, weight, targets, z_loss, chunk or _default_chunk(weight), losses)
    return total, added


def _default_chunk(weight: Tensor) -> int:
    return max(64, _CHUNK_LOGITS // weight.shape[0])


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    scores = hidden @ weight.T
    return scores if scores.dtype == torch.float64 else scores.float()


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk: int, losses: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype(hidden)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            w = operand(weight, dtype)
            flat, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
            grad_hidden = torch.empty_like(flat) if wants_hidden else None
            grad_weight = torch.zeros_like(weight, dtype=_wide(weight)) if wants_weight else None
            total = torch.zeros((), dtype=_wide(hidden), device=hidden.device)
            added = torch.zeros_like(total)
            for start in range(0, flat.shape[0], chunk):
                h, t = operand(flat[start : start + chunk], dtype), flat_targets[start : start + chunk]
                valid = t != IGNORE_INDEX
                index = torch.where(valid, t, 0).unsqueeze(1)
                logits = _logits(h, w)
                picked = logits.gather(1, index)
                # In place and with one exponential for both: the loss, log sum exp - picked, and the softmax.
                highest = logits.amax(1, keepdim=True)
                sums = logits.sub_(highest).exp_().sum(1, keepdim=True)
                log_sums = sums.log() + highest
                each = (log_sums - picked) * valid.unsqueeze(1)
                total += each.sum()
                if losses is not None:
                    losses[start : start + chunk] = each.squeeze(1)
                if z_loss:
                    added += z_loss * (log_sums.square() * valid.unsqueeze(1)).sum()
                if not (wants_hidden or wants_weight):
                    continue
                # d loss / d logits = softmax - one hot, and 0 where nothing is asked; d log_sums / d logits = softmax.
                count = valid.unsqueeze(1).to(sums.dtype)
                share = count * (1 + 2 * z_loss * log_sums) if z_loss else count
                slope = operand(logits.mul_(share / sums).scatter_add_(1, index, -count), dtype)
                if grad_hidden is not None:
                    grad_hidden[start : start + chunk] = slope @ w
                if grad_weight is not None:
                    grad_weight += slope.T @ h
        ctx.shape = hidden.shape
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(added)
        return total + added, added

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        to_hidden = None if grad_hidden is None else (grad_hidden * grad).view(ctx.shape)
        to_weight = None if grad_weight is None else (grad_weight * grad).to(ctx.weight_dtype)
        return to_hidden, to_weight, None, None, None, None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        dtype = product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            w = operand(weight, dtype)
            flat, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
            logprobs, logsumexps = [], []
            for h, t in zip(flat.split(chunk), flat_targets.split(chunk), strict=True):
                valid = t != IGNORE_INDEX
                logits = _logits(operand(h, dtype), w)
                logsumexp = logits.logsumexp(1)
                chosen = logits.gather(1, torch.where(valid, t, 0).unsqueeze(1)).squeeze(1)
                logprobs.append((chosen - logsumexp) * valid)
                logsumexps.append(logsumexp)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(logsumexps))
        ctx.dtype, ctx.chunk = dtype, chunk
        return torch.cat(logprobs).view(targets.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, logsumexps = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            w = operand(weight, ctx.dtype)
            flat = hidden.reshape(-1, hidden.shape[-1])
            grad_hidden = torch.empty_like(flat) if wants_hidden else None
            grad_weight = torch.zeros_like(weight, dtype=_wide(weight)) if wants_weight else None
            pieces = (x.reshape(-1).split(ctx.chunk) for x in (targets, logsumexps, grad))
            for i, (t, logsumexp, g) in enumerate(zip(*pieces, strict=True)):
                place = slice(i * ctx.chunk, (i + 1) * ctx.chunk)
                h = operand(flat[place], ctx.dtype)
                valid = t != IGNORE_INDEX
                g = torch.where(valid, g, 0.0).unsqueeze(1)
                # d logprob / d logits = one hot - softmax
                slope = _logits(h, w).sub_(logsumexp.unsqueeze(1)).exp_().mul_(-g)
                slope = slope.scatter_add_(1, torch.where(valid, t, 0).unsqueeze(1), g.to(slope.dtype))
                slope = operand(slope, ctx.dtype)
                if grad_hidden is not None:
                    grad_hidden[place] = slope @ w
                if grad_weight is not None:
                    grad_weight += slope.T @ h
        to_hidden = None if grad_hidden is None else grad_hidden.view_as(hidden)
        to_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return to_hidden, to_weight, None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
