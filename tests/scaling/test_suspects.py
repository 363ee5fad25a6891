"""Losses that the surface cannot explain are told by row."""

import math
from dataclasses import replace

import pytest

from herd.scaling.laws import LawsConfig, fit_laws
from herd.scaling.records.record import Record
from herd.scaling.suspects import suspects

from .conftest import make_sweep


def suspects_of(records: list[Record]) -> list[tuple[str, str]]:
    return [(one.row, one.reason) for one in suspects(fit_laws(records, LawsConfig(replicates=100)))]


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.02])
def test_noise_is_no_suspect(noise: float) -> None:
    assert suspects_of(make_sweep(noise=noise)) == []


def test_an_outlier_is_named_with_what_the_surface_expects() -> None:
    records = make_sweep(noise=0.003)
    records[8] = replace(records[8], loss=10 * records[8].loss)
    ((row, reason),) = suspects_of(records)
    assert row == records[8].cell and reason.startswith(f"its loss {records[8].loss:.4g} is ") and "status=diverged" in reason


def test_bits_among_nats_are_named_as_such() -> None:
    records = make_sweep(noise=0.003)
    for i in (2, 11, 16):
        records[i] = replace(records[i], loss=records[i].loss / math.log(2))
    found = suspects_of(records)
    assert sorted(row for row, _ in found) == sorted(records[i].cell for i in (2, 11, 16))
    assert all("as bits among nats would be: state loss_unit" in reason for _, reason in found)


def test_without_a_surface_there_is_no_suspect() -> None:
    assert suspects_of(make_sweep(noise=0.003, budgets=(1e11,))) == []
