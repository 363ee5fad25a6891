"""Strict loading: an unknown key in any form is refused with the nearest valid name."""

from dataclasses import dataclass, field

import pytest
from omegaconf import OmegaConf

from herd.config.errors import UserError, nearest
from herd.config.loader import load, to_plain
from herd.config.registry import Registry


@dataclass(frozen=True)
class Inner:
    dim: int = 4
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.dim <= 0:
            raise UserError(f"dim must be positive, not {self.dim}: give 1 or more.")


@dataclass(frozen=True)
class Outer:
    model: Inner
    seed: int
    weights: dict[str, float] = field(default_factory=dict)
    parts: list[Inner] = field(default_factory=list)
    named: dict[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None


def values(**changes: object) -> dict:
    return {"model": {"dim": 8, "rate": 1e-3}, "seed": 1, **changes}


def test_loads_a_tree_of_frozen_dataclasses() -> None:
    loaded = load(Outer, OmegaConf.create(values(parts=[{"dim": 2}], named={"a": {"dim": 3}}, maybe={"dim": 5})))
    assert loaded == Outer(Inner(8, 1e-3), 1, {}, [Inner(2)], {"a": Inner(3)}, Inner(5))
    assert isinstance(loaded.parts[0], Inner)
    assert to_plain(loaded)["named"] == {"a": {"dim": 3, "rate": 0.5}}


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (values(sed=2), "'seed'"),
        (values(model={"dimm": 3}), "'dim'"),
        (values(parts=[{"dim": 1}, {"rat": 1.0}]), "'rate'"),
        (values(named={"a": {"dimm": 1}}), "'dim'"),
        (values(maybe={"dmi": 1}), "'dim'"),
    ],
)
def test_unknown_key_names_the_nearest_field_in_one_line(broken: dict, named: str) -> None:
    with pytest.raises(UserError, match="Unknown key") as caught:
        load(Outer, OmegaConf.create(broken))
    assert f"Did you mean {named}?" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [values(seed="x"), values(model={"dim": "wide"}), {"seed": 1}, values(model={"dim": -1})])
def test_wrong_or_missing_values_are_user_errors_of_one_line(broken: dict) -> None:
    with pytest.raises(UserError) as caught:
        load(Outer, broken)
    assert "\n" not in str(caught.value)


def test_post_init_reason_reaches_the_user() -> None:
    with pytest.raises(UserError, match="dim must be positive, not -1: give 1 or more"):
        load(Outer, values(model={"dim": -1}))


def test_registry_is_closed() -> None:
    registry: Registry[int] = Registry("optimizer")
    registry.register("adamw")(1)
    assert registry.get("adamw") == 1
    with pytest.raises(UserError, match=r"Unknown optimizer 'adam'\. Did you mean 'adamw'"):
        registry.get("adam")
    with pytest.raises(AssertionError):
        registry.register("adamw")(2)


def test_nearest_says_nothing_when_nothing_is_close() -> None:
    assert nearest("zzz", ["alpha", "beta"]) == ""
