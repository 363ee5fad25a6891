"""The closing line of a stage names what matters of it."""

from herd.alignment import average_stage, best_stage, dpo_stage
from herd.alignment.members import AgainstBest, reason_of
from herd.recipe.graph import closing


def test_a_headline_chooses_the_numbers_and_adds_their_intervals():
    metrics = {
        "eval_logits/chosen": -1.6,
        "eval_nll_loss": 3.39,
        "heldout_pairs": 207,
        "rewards/accuracies": 0.82608,
        "rewards/accuracies_interval": [0.7687, 0.8717],
        "rewards/margins": 1.8327,
        "train_loss": 0.87866,
    }
    assert closing("dpo: done", metrics, dpo_stage.STAGE.headline) == (
        "dpo: done (rewards/accuracies 0.8261 [0.7687, 0.8717], rewards/margins 1.833, eval_nll_loss 3.39,\n"
        "    train_loss 0.8787, heldout_pairs 207)"
    )


def test_the_reason_is_told_in_lines_that_can_be_read():
    compared = {
        "loss": AgainstBest("a", 0.0, [-1, 1], "no_difference_seen", ""),
        "rewards/margins": AgainstBest("dpo-b", -0.2, [-0.3, -0.1], "worse", ""),
        "nll_loss": AgainstBest("b", 0.0, [-1, 1], "no_difference_seen", ""),
    }
    metrics = {
        "members": 2,
        "loss": 2.5,
        "rewards/margins": 0.4,
        "nll_loss": 2.4,
        "status": "worse",
        "reason": reason_of(compared),
    }
    said = closing("[12/40] round-1/average: done in 3.2 s", metrics, average_stage.STAGE.headline)
    assert said.splitlines() == [
        "[12/40] round-1/average: done in 3.2 s (members 2, loss 2.5, rewards/margins 0.4, nll_loss 2.4,",
        "    status worse): the mean is worse by more than the interval than its best member in",
        "    rewards/margins (dpo-b): use that one; no difference seen to its best member in loss (a),",
        "    nll_loss (b)",
    ]


def test_names_and_mappings_are_told_too():
    metrics = {"best": {"call": "average", "what": "dpo"}, "best_overall": "average", "overall": {"dpo": {"reward": 1.0}}}
    assert (
        closing("best: done", metrics, best_stage.STAGE.headline)
        == "best: done (best call: average; what: dpo, best_overall average)"
    )


def test_what_a_stage_had_nothing_to_make_of_is_left_out():
    assert closing("average: done", {"members": 2, "weights": {}}, average_stage.STAGE.headline) == "average: done (members 2)"


def test_without_a_headline_the_first_plain_numbers_stand():
    metrics = {"a": 1, "b": 2.0, "on": True, "rows": {}, "c": 1234, "d": 4, "e": 5}
    assert closing("x: done", metrics) == "x: done (a 1, b 2, c 1,234, d 4)"
    assert closing("x: done", {"rows": {}}) == "x: done"
