"""Rounds declared once become the stages that a person would have written out."""

from typing import Any

import pytest

from herd.config.errors import UserError
from herd.config.loader import compose, load
from herd.recipe.graph import RecipeConfig, job_of
from herd.recipe.node import Node
from herd.recipe.rounds import RoundsConfig

STAGES = ["preferences", "reward", "reject", "sft", "dpo", "dpo-b", "average", "best"]


def rounds(count: int = 2, **changes: Any) -> RoundsConfig:
    values: dict[str, Any] = {
        "after": "sft-seed",
        "prompts": {"preferences": [700, 600], "reject": [150]},
        "variants": {"dpo": ["seed=0"], "dpo-b": ["seed=1"]},
        "candidates": ["sft", "average"],
    }
    return RoundsConfig(count, **(values | changes))


def recipe(declared: RoundsConfig, **stages: Node) -> RecipeConfig:
    before = {
        name: Node(command) for name, command in [("tokenize", "tokenize"), ("pretrain", "pretrain"), ("dialogs", "dialogs")]
    }
    own = before | {"sft-seed": Node("sft")} | {name.replace("_", "/"): node for name, node in stages.items()}
    return RecipeConfig("r", "", "runs", False, None, own, declared)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_laptop_recipe_composes_with_any_number_of_rounds(count: int) -> None:
    loaded = load(RecipeConfig, compose("recipe", [f"rounds.count={count}"]))
    names = [name for name in loaded.nodes if name.startswith("round-")]
    assert names == [f"round-{r}/{stage}" for r in range(1, count + 1) for stage in STAGES]
    last = f"round-{count}"
    assert list(loaded.nodes["evaluate"].groups["rewards"]) == [f"round-{r}/reward" for r in range(1, count + 1)]
    assert loaded.nodes["evaluate"].groups["preferences"][last] == f"{last}/preferences"
    assert list(loaded.nodes["report"].groups["stages"]) == [name for name in loaded.nodes if name != "report"]
    for stage in ("preferences", "reject", "dpo-b", "best"):  # every kind of stage is a job, the last round's standing for all
        job_of(loaded, f"{last}/{stage}")
    assert job_of(loaded, f"{last}/dpo-b").config.seed == 1


def test_each_round_learns_from_what_the_paper_says() -> None:
    nodes = recipe(rounds(3)).nodes
    third = {stage: nodes[f"round-3/{stage}"] for stage in STAGES}
    assert third["preferences"].groups["models"] == {
        "sft": "round-2/sft",
        "average": "round-2/average",
    }  # two of the round before
    assert list(third["reward"].groups["preferences"].values()) == [f"round-{r}/preferences" for r in (1, 2, 3)]  # all rounds
    assert third["reward"].inputs["base"] == third["sft"].inputs["base"] == "pretrain"
    assert third["dpo"].inputs["preferences"] == "round-3/preferences"  # the newest alone
    assert third["sft"].groups["dialogs"] == {"seed": "dialogs"} | {f"round-{r}": f"round-{r}/reject" for r in (1, 2, 3)}
    assert third["reject"].inputs["best"] == third["preferences"].inputs["best"] == "round-2/best"
    assert third["average"].groups["models"] == {"dpo": "round-3/dpo", "dpo-b": "round-3/dpo-b"}
    first = nodes["round-1/preferences"]
    assert "models" not in first.groups and nodes["round-1/reject"].inputs["generator"] == "sft-seed"


def test_a_rounds_best_is_judged_by_its_own_reward_model() -> None:
    nodes = rounds(3).nodes()
    assert [nodes[f"round-{r}/best"].inputs["reward"] for r in (1, 2, 3)] == [f"round-{r}/reward" for r in (1, 2, 3)]


def test_a_further_round_leaves_the_earlier_ones_as_they_were() -> None:
    two, three = recipe(rounds(2)).nodes, recipe(rounds(3)).nodes
    assert {name: three[name] for name in two} == two
    taken = [node.overrides[:2] for name, node in three.items() if name.endswith(("/preferences", "/reject"))]
    assert taken[:4] == [["first_prompt=0", "prompts=700"], ["first_prompt=700", "prompts=150"],
                         ["first_prompt=850", "prompts=600"], ["first_prompt=1450", "prompts=150"]]  # fmt: skip
    assert taken[4] == ["first_prompt=1600", "prompts=600"]  # the last number stands for all later rounds


def test_overrides_come_from_the_common_to_the_particular() -> None:
    declared = rounds(
        2,
        overrides={"dpo": ["epochs=2"]},
        each={"round-2": {"dpo": ["optimizer.lr=2e-4"], "dpo-b": ["objective.beta=0.3"]}},
    )
    changed = Node(extra=["epochs=4"])
    nodes = recipe(declared, **{"round-2_dpo-b": changed}).nodes
    assert nodes["round-1/dpo-b"].overrides == ["epochs=2", "seed=1"]
    assert nodes["round-2/dpo"].overrides == ["epochs=2", "optimizer.lr=2e-4", "seed=0"]
    assert nodes["round-2/dpo-b"].overrides == ["epochs=2", "optimizer.lr=2e-4", "seed=1", "objective.beta=0.3"]
    assert nodes["round-2/dpo-b"].extra == ["epochs=4"]
    assert list(nodes).index("round-2/dpo-b") == 4 + 8 + 5  # in its place, not where it was changed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rounds.cuont=3"], "Did you mean 'rounds.count'"),
        (["rounds.count=0"], "rounds.count must be at least 1"),
        (["++rounds.each.rond-2.dpo=[]"], "rounds.each.rond-2: name a round, as round-2"),
        (["++rounds.each.round-2.dpoo=[]"], "Did you mean 'dpo'"),
        (["++rounds.overrides.rewards=[]"], "Did you mean 'reward'"),
        (["rounds.candidates=[sft,averge]"], "Did you mean 'average'"),
        (["rounds.candidates=[sft]"], "two different models"),
        (["rounds.after=sft-sed"], "Did you mean 'sft-seed'"),
        (["++rounds.prompts.rejects=[3]"], "Did you mean 'reject'"),
        (["until=round-3/dpo"], "Did you mean 'round-2/dpo'"),
        (["++stages={round-2/dpoo: {extra: []}}"], "Did you mean 'round-2/dpo'"),
        (["++stages={round-2/dpo: {command: sft}}"], "is a round's"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(RecipeConfig, compose("recipe", overrides))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_variants_of_one_setting_are_one_model_and_refused() -> None:
    with pytest.raises(UserError, match=r"dpo and dpo-b have the same overrides in round 1, so they are one model"):
        rounds(variants={"dpo": ["seed=0"], "dpo-b": ["seed=0"]})
    told_apart = {"round-1": {"dpo-b": ["seed=1"]}}  # in the first round alone
    with pytest.raises(UserError, match="in round 2"):
        rounds(variants={"dpo": [], "dpo-b": []}, each=told_apart)
    assert rounds(1, variants={"dpo": [], "dpo-b": []}, each=told_apart).averaged


MEMBERS = {"reward": {"reward-a": ["seed=0"], "reward-b": ["seed=1"]}, "sft": {"sft-a": ["epochs=1"], "sft-b": ["epochs=2"]}}


def test_reward_model_and_sft_may_be_means_of_members() -> None:
    """Each member is trained on what the one would be; the mean takes its place, measured on what none of them has seen."""
    plain = recipe(rounds(2)).nodes
    declared = rounds(2, members=MEMBERS, overrides={"sft": ["window=64"]}, each={"round-2": {"sft-b": ["optimizer.lr=1e-3"]}})
    nodes = recipe(declared).nodes
    second = [name.removeprefix("round-2/") for name in nodes if name.startswith("round-2/")]
    assert second == ["preferences", "reward-a", "reward-b", "reward", "reject", "sft-a", "sft-b", "sft", *STAGES[4:]]
    for command in ("reward", "sft"):
        mean = nodes[f"round-2/{command}"]
        assert mean.command == "average"
        assert list(mean.groups["models"].values()) == [f"round-2/{member}" for member in MEMBERS[command]]
        for member in MEMBERS[command]:
            one, alone = nodes[f"round-2/{member}"], plain[f"round-2/{command}"]
            assert (one.command, one.inputs, one.groups) == (command, alone.inputs, alone.groups)
    assert nodes["round-2/reward"].inputs == {"tokens": "tokenize", "preferences": "round-2/preferences"}
    assert nodes["round-2/sft"].inputs == {"tokens": "tokenize", "heldout": "dialogs"}
    assert nodes["round-2/sft-b"].overrides == ["window=64", "epochs=2", "optimizer.lr=1e-3"]
    others = {name: node for name, node in nodes.items() if name in plain and not name.endswith(("/reward", "/sft"))}
    assert others == {name: node for name, node in plain.items() if not name.endswith(("/reward", "/sft"))}


def test_members_compose_in_the_laptop_recipe() -> None:
    told = [f"++rounds.members.{kind}={{{kind}-a: ['seed=0'], {kind}-b: ['seed=1']}}" for kind in MEMBERS]
    loaded = load(RecipeConfig, compose("recipe", told))
    assert job_of(loaded, "round-2/reward-b").config.seed == 1
    assert job_of(loaded, "round-2/sft").stage.name == "average"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"rewrd": MEMBERS["reward"]}, "Did you mean 'reward'"),
        ({"reward": {"reward-a": []}}, "rounds.members.reward: name two stages or more"),
        ({"sft": {"sft": [], "sft-b": ["seed=1"]}}, "none as another stage of a round"),
        ({"sft": {"a": [], "b": ["seed=1"]}, "reward": {"a": [], "c": ["seed=1"]}}, "none as another stage of a round"),
        ({"sft": {"a": ["seed=1"], "b": ["seed=1"]}}, "rounds.members.sft: a and b have the same overrides in round 1"),
    ],
)
def test_members_that_cannot_be_are_refused(members: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        rounds(members=members)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_patterns_stand_for_earlier_stages_in_their_order() -> None:
    earlier = ["curate", "round-1/sft", "round-1/dpo", "round-2/sft"]
    node = Node("x", groups={"m": {"first": "curate", "a-*": "round-*/dpo", "round-*/sft": "round-*/sft"}, "all": {"*": "*"}})
    found = node.spelled_out("y", earlier).groups
    assert list(found["m"].items()) == [
        ("first", "curate"), ("round-1/sft", "round-1/sft"), ("a-1", "round-1/dpo"), ("round-2/sft", "round-2/sft")
    ]  # fmt: skip
    assert list(found["all"]) == earlier
    with pytest.raises(UserError, match=r"stage 'y', groups.m: no earlier stage matches 'round-\*/dop'"):
        Node("x", groups={"m": {"*": "round-*/dop"}}).spelled_out("y", earlier)
