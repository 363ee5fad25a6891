"""The closing line of a stage names what matters of it."""

from herd.alignment import average_stage, best_stage, dpo_stage
from herd.recipe.graph import highlights


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
    assert highlights(metrics, dpo_stage.STAGE.headline) == (
        " (rewards/accuracies 0.8261 [0.7687, 0.8717], rewards/margins 1.833, eval_nll_loss 3.39, train_loss 0.8787, "
        "heldout_pairs 207)"
    )


def test_names_and_mappings_are_told_too():
    metrics = {"best": {"call": "average", "what": "dpo"}, "best_overall": "average", "overall": {"dpo": {"reward": 1.0}}}
    assert highlights(metrics, best_stage.STAGE.headline) == " (best call: average; what: dpo, best_overall average)"


def test_what_a_stage_had_nothing_to_make_of_is_left_out():
    assert highlights({"members": 2, "weights": {}}, average_stage.STAGE.headline) == " (members 2)"


def test_without_a_headline_the_first_plain_numbers_stand():
    metrics = {"a": 1, "b": 2.0, "on": True, "rows": {}, "c": 1234, "d": 4, "e": 5}
    assert highlights(metrics) == " (a 1, b 2, c 1,234, d 4)"
    assert highlights({"rows": {}}) == ""
