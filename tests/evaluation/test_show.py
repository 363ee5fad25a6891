"""What `herd evaluate` prints: a score with its interval for each model and task, and what was not measured."""

from herd.evaluation.show import score_lines


def scored(metric: str, value: float) -> dict:
    return {f"{metric},none": value, f"{metric}_interval,none": [value - 0.1, value + 0.1]}


def test_each_model_and_task_has_a_line_and_what_is_missing_its_reason():
    choice = scored("acc", 0.25) | scored("acc_norm", 0.3)
    report = {
        "configs": {"documentation_choice": {"headline": "acc_norm"}},
        "config": {"models_in_order": ["sft", "reward"]},
        "results": {
            "sft": {"bits_per_byte": scored("bits_per_byte", 2.5), "bits_per_byte_code": scored("bits_per_byte", 3.5)}
            | {"documentation_choice": choice, "win_rate_over_base": scored("win_rate", 0.75) | scored("reward", 4.0)},
            "reward": {"reward_accuracy_people": scored("acc", 0.8)},
            "bigram": {"ngram_baselines": scored("loss", 4.0)},
        },
        "skipped": {"needle": "no held-out text"},
    }
    assert list(score_lines(report)) == [
        "sft     bits_per_byte           bits_per_byte  2.500 [2.400, 2.600]",
        "sft     documentation_choice    acc_norm       0.300 [0.200, 0.400]",
        "sft     win_rate_over_base      win_rate       0.750 [0.650, 0.850]",
        "reward  reward_accuracy_people  acc            0.800 [0.700, 0.900]",
        "not measured: needle (no held-out text)",
    ]
