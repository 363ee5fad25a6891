"""Row 11 of the published results: the OLMo ladder's two-step forecasts for its 13B model on 5T tokens (Bhagia et al. 2024)."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from herd.scaling.tasks.task_law import TaskHistory, TaskLawConfig, fit_task_law, trailing_mean

# Step 1 on the mean of the last 5 evaluations, Huber on ln loss; step 2 without the first tenth, moving averages of 5, and the
# ideal point of loss 0 at accuracy 1.
RECIPE = TaskLawConfig(last=5, skip=0.1, window=5, anchors=((0.0, 1.0),), replicates=100)


def history(folder: Path, size: dict[str, Any], path: str, task: str) -> TaskHistory:
    with open(folder / "ladder-runs" / Path(path).name, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = rows[-1]
    if "throughput/total_tokens" in last:
        tokens = float(last["throughput/total_tokens"])
    else:
        tokens = float(last["_step"]) * float(last["batch_size_in_tokens"])
    losses, accuracies = (
        [float(row[f"eval/{kind}/{task}_rc_5shot_{end}"]) for row in rows]
        for kind, end in (("downstream_bpb", "bpb"), ("downstream", "len_norm"))
    )
    return TaskHistory(Path(path).stem, size["n"], tokens, losses, accuracies, size["flops"] * tokens)


@pytest.mark.parametrize(
    ("task", "step1", "step2", "chained"),
    [
        ("hellaswag_val", 0.6532, 0.8416, 0.8530),
        ("arc_challenge_test", 0.7833, 0.6030, 0.5267),
        ("piqa_val", 0.8748, 0.8075, 0.8208),
    ],
)
def test_the_forecasts_for_13b_on_5t(reference_data: Path, task: str, step1: float, step2: float, chained: float) -> None:
    folder = reference_data / "scaling" / "olmo-ladder"
    if not folder.is_dir():
        pytest.skip(f"no OLMo ladder at {folder}")
    sizes = json.loads((folder / "configs" / "final.json").read_text())
    ladder = [history(folder, size, path, task) for size in sizes.values() if size["mode"] == "train" for path in size["paths"]]
    target = history(folder, sizes["13B-5T"], sizes["13B-5T"]["paths"][0], task)
    law = fit_task_law(ladder, RECIPE)
    forecast = law.forecast(target.compute, target.parameters, target.tokens)
    assert forecast.loss == pytest.approx(step1, abs=0.001)
    assert float(law.link.predict(trailing_mean(target.losses, 5)[-1])) == pytest.approx(step2, abs=0.001)
    assert forecast.accuracy == pytest.approx(chained, abs=0.001)
    # Beside the published number: how far this is from what was fitted, and how well it is known.
    assert forecast.extrapolation_ratio == pytest.approx(177, abs=1)
    low, high = forecast.accuracy_interval
    assert low < forecast.accuracy < high < 1 and high - low < 0.2
