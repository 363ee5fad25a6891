"""Units of the loss and conventions of the FLOPs: what a row states, and how it is restated without guessing."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.config.errors import UserError, nearest

if TYPE_CHECKING:
    from herd.scaling.records.record import Record

# unit -> (nats in one, of what)
LOSS_UNITS: dict[str, tuple[float, str]] = {
    "nats/token": (1.0, "token"),
    "bits/token": (math.log(2), "token"),
    "nats/byte": (1.0, "byte"),
    "bits/byte": (math.log(2), "byte"),
}

# How training FLOPs may have been counted, forward and backward. See herd.model.counts for the first three.
FLOPS_CONVENTIONS: dict[str, str] = {
    "6N": "6 x matrices of layers and head x tokens",
    "6N+attention_full": "6N, plus 12 x layers x width x sequence length for each token",
    "6N+attention_causal": "6N, plus half of that",
    "6N_non_embedding": "6 x matrices of the layers alone x tokens (Kaplan et al. 2020)",
    "6N_total": "6 x everything stored, the input embedding too, x tokens",
    "unstated": "as the source gives them; compare with nothing else",
}


def check_unit(unit: str) -> None:
    """UserError unless ``unit`` is one of :data:`LOSS_UNITS`."""
    if unit not in LOSS_UNITS:
        raise UserError(f"Unknown loss unit '{unit}'.{nearest(unit, LOSS_UNITS)} Choices: {', '.join(LOSS_UNITS)}.")


def check_convention(convention: str) -> None:
    """UserError unless ``convention`` is one of :data:`FLOPS_CONVENTIONS`."""
    if convention not in FLOPS_CONVENTIONS:
        hint = nearest(convention, FLOPS_CONVENTIONS)
        raise UserError(f"Unknown FLOP convention '{convention}'.{hint} Choices: {', '.join(FLOPS_CONVENTIONS)}.")


def convert_loss(record: "Record", unit: str) -> "Record":
    """The same row with its loss in ``unit``.

    Raises:
        UserError: from tokens to bytes, or back, without ``bytes_per_token``: that number is the tokenizer's, not a constant.
    """
    if record.loss_unit == unit:
        return record
    nats, per = LOSS_UNITS[record.loss_unit]
    wanted_nats, wanted_per = LOSS_UNITS[unit]
    loss = record.loss * nats / wanted_nats
    if per != wanted_per:
        if not record.bytes_per_token:
            raise UserError(
                f"{record.loss_unit} become {unit} only with the tokenizer's bytes per token: add the column bytes_per_token"
            )
        loss = loss * record.bytes_per_token if wanted_per == "token" else loss / record.bytes_per_token
    return replace(record, loss=loss, loss_unit=unit)


def recount_flops(record: "Record", convention: str) -> "Record":
    """The same row with its FLOPs counted anew by ``convention`` from its parts; the budget is left to the caller.

    Raises:
        UserError: the row lacks a part that the convention counts.
    """
    if record.flops_convention == convention:
        return record
    if convention == "unstated":
        raise UserError("'unstated' is no way to count: name a convention")
    needed = {
        "6N_non_embedding": ("block_parameters",),
        "6N_total": ("block_parameters", "head_parameters", "embedding_parameters"),
        "6N+attention_full": ("layers", "width", "seq_len"),
        "6N+attention_causal": ("layers", "width", "seq_len"),
    }.get(convention, ())
    missing = [name for name in needed if getattr(record, name) is None]
    if missing:
        raise UserError(f"FLOPs by {convention} need the column {', '.join(missing)}")
    if convention.startswith("6N_"):
        per_token = 6.0 * sum(getattr(record, name) for name in needed)
    else:
        per_token = 6.0 * record.parameters
        if needed:
            square = 12.0 * float(record.layers or 0) * float(record.width or 0) * float(record.seq_len or 0)
            per_token += square if convention.endswith("full") else square / 2
    return replace(record, flops=per_token * record.tokens, flops_convention=convention)
