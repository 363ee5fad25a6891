"""What a run must show, decided by its numbers; and the numbers for the top of the page."""

from typing import Any

from herd.report.blocks import Claim, Fact
from herd.report.formats import duration, interval, number, percent, share, si, size
from herd.report.run_data import RunData
from herd.report.style import short


def claims(run: RunData) -> list[Claim]:
    """One claim for each thing that was measured; nothing is claimed about what was not."""
    found = [*_margins(run), _choice(run), _reward(run), *_wins(run), _forecast(run)]
    return [claim for claim in found if claim is not None]


def base_label(run: RunData) -> str | None:
    """The label of the pre-trained model among those evaluated: the first."""
    labels = run.labels("bits_per_byte") or run.labels("documentation_choice")
    return labels[0] if labels else None


def headline(run: RunData) -> tuple[str, float]:
    """The multiple-choice score that was chosen beforehand, and its chance level."""
    notes = run.evaluation.get("notes", {}).get("documentation_choice", {})
    return notes.get("headline", "acc_norm"), notes.get("chance", 0.25)


def win_rates(run: RunData) -> list[dict[str, Any]]:
    """Comparisons by a reward model."""
    return [c for c in run.evaluation.get("comparisons", []) if c["task"] == "win_rate"]


def _margins(run: RunData) -> list[Claim]:
    label = base_label(run)
    if label is None:
        return []
    result, claimed = run.results(label, "ngram_baselines"), []
    for name in ("unigram", "bigram"):
        margin, bounds = result.get(f"margin_over_{name},none"), result.get(f"margin_over_{name}_interval,none")
        if margin is None or bounds is None:
            continue
        article = "an interpolated" if name == "bigram" else "a"
        text = f"The pre-trained model predicts held-out text better than {article} {name} model"
        detail = f"by {margin:.2f} nats per token, 95% interval {interval(bounds, 2)}"
        claimed.append(Claim(text, bounds[0] > 0, detail))
    return claimed


def _choice(run: RunData) -> Claim | None:
    label, (metric, chance) = base_label(run), headline(run)
    result = run.results(label, "documentation_choice") if label else {}
    if not result:
        return None
    value, bounds = result[f"{metric},none"], result[f"{metric}_interval,none"]
    items = run.evaluation["n-samples"]["documentation_choice"]["effective"]
    text = f"It answers four-way questions about held-out functions above chance ({percent(chance, 0)})"
    detail = f"{share(value, bounds)} by {metric} on {items} questions"
    return Claim(text, bounds[0] > chance, detail)


def _reward(run: RunData) -> Claim | None:
    last = next((r for r in reversed(run.rounds) if r.metrics("reward").get("accuracy") is not None), None)
    if last is None:
        return None
    metrics = last.metrics("reward")
    bounds = metrics.get("accuracy_interval")
    name = last.name.replace("-", " ")
    text = f"The reward model of {name} prefers the better of two held-out answers above chance (50%)"
    detail = f"{share(metrics['accuracy'], bounds)} on {metrics.get('heldout_pairs')} pairs"
    return Claim(text, bool(bounds and bounds[0] > 0.5), detail)


def _wins(run: RunData) -> list[Claim]:
    found = []
    for c in win_rates(run):
        low, high = c["interval"]
        sure = "the interval holds 50%" if low <= 0.5 <= high else f"the interval lies {'above' if low > 0.5 else 'below'} 50%"
        text = f"Answers of {short(c['models'][0])} win over those of {short(c['models'][1])}, judged by {short(c['judge'])}"
        detail = f"{share(c['win_rate'], c['interval'])}, ties {c['ties']}; {sure}"
        found.append(Claim(text, c["win_rate"] > 0.5, detail))
    return found


def _forecast(run: RunData) -> Claim | None:
    fit, measured = run.metrics("scaling-fit"), run.metrics("pretrain").get("initial_loss")
    bounds = fit.get("predicted_loss_interval")
    if measured is None or not bounds:
        return None
    text = "The loss forecast before the flagship was trained holds"
    detail = f"forecast {fit['predicted_loss']:.3f} {interval(bounds)}, measured {measured:.3f} nats per token"
    return Claim(text, bool(bounds[0] <= measured <= bounds[1]), detail)


def facts(run: RunData) -> list[Fact]:
    """The key numbers; a fact whose number is missing is left out."""
    curated, tokens, fit, trained = (run.metrics(c) for c in ("curate", "tokenize", "scaling-fit", "pretrain"))
    found: list[Fact] = []
    if "documents_out" in curated:
        note = f"of {si(curated['documents_in'])} collected"
        found.append(Fact("documents kept", si(curated["documents_out"]), note))
    if tokens.get("tokens_by_domain"):
        note = f"{number(tokens.get('characters_per_token'), 2)} characters each"
        found.append(Fact("training tokens", si(sum(tokens["tokens_by_domain"].values())), note))
    if trained.get("parameters"):
        note = f"trained on {si(trained['tokens'])} tokens"
        found.append(Fact("flagship parameters", si(trained["parameters"]), note))
    if fit.get("alpha") is not None:
        found.append(Fact("optimal tokens ∝ C^α", f"α = {fit['alpha']:.2f}", interval(fit.get("alpha_interval"), 2)))
    if trained.get("initial_loss") is not None:
        predicted, bounds = fit.get("predicted_loss"), fit.get("predicted_loss_interval")
        note = f"forecast {predicted:.2f} {interval(bounds, 2)}" if predicted is not None else "nats per token"
        found.append(Fact("loss measured", number(trained["initial_loss"], 2), note))
    label, (metric, chance) = base_label(run), headline(run)
    result = run.results(label, "documentation_choice") if label else {}
    if result:
        note = f"{interval(result[f'{metric}_interval,none'], as_percent=True)}, chance {percent(chance, 0)}"
        found.append(Fact("multiple choice", percent(result[f"{metric},none"]), note))
    if wins := win_rates(run):
        winner, other = map(short, wins[-1]["models"])
        note = f"{interval(wins[-1]['interval'], as_percent=True)}, {winner} over {other}"
        found.append(Fact("win rate", percent(wins[-1]["win_rate"]), note))
    if run.stages:
        seconds = sum(a.manifest["cost"]["seconds"] for a in run.stages.values())
        memory = max(a.manifest["peak_memory_bytes"] or 0 for a in run.stages.values())
        found.append(Fact("whole run", duration(seconds), f"peak memory {size(memory)}"))
    return found
