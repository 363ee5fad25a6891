"""What a run must show, decided by its numbers; and the numbers for the top of the page."""

from typing import Any

from herd.report.blocks import Claim, Fact, above
from herd.report.formats import duration, interval, number, percent, share, si, size
from herd.report.run_data import RunData
from herd.report.style import DOMAINS, short


def claims(run: RunData) -> list[Claim]:
    """One claim for each thing that was measured; nothing is claimed about what was not."""
    found = [*_margins(run), _choice(run), _reward(run), *_wins(run), _forecast(run)]
    return [claim for claim in found if claim is not None]


def base_label(run: RunData) -> str | None:
    """The label of the pre-trained model among those evaluated: the first."""
    labels = run.labels("bits_per_byte") or run.labels("documentation_choice")
    return labels[0] if labels else None


def headline(run: RunData) -> tuple[str, float]:
    """The multiple-choice score that the configuration names, and its chance level.

    The laptop recipe's was set after scores of an earlier run had been seen; the page says so and prints the others too.
    """
    notes = run.evaluation.get("notes", {}).get("documentation_choice", {})
    return notes.get("headline", "acc_norm"), notes.get("chance", 0.25)


def lexical_overlap(run: RunData) -> str | None:
    """What counting the words that question and answer share reaches on the same questions."""
    found = run.evaluation.get("notes", {}).get("documentation_choice", {}).get("lexical_overlap")
    return share(found["acc"], found.get("interval")) if found else None


def win_rates(run: RunData) -> list[dict[str, Any]]:
    """Comparisons by a reward model."""
    return [c for c in run.evaluation.get("comparisons", []) if c["task"] == "win_rate"]


def reward_differences(run: RunData) -> list[dict[str, Any]]:
    """Differences of the mean reward of two models' answers to the same prompts."""
    return [c for c in run.evaluation.get("comparisons", []) if c["task"] == "reward_of_answers"]


def margins_by_domain(run: RunData, label: str, baseline: str = "bigram") -> dict[str, tuple[float, list[float], int | None]]:
    """Domain -> nats per token by which a model beats a baseline, the 95% interval, and the documents behind it."""
    found = {}
    for domain in DOMAINS:
        result, task = run.results(label, f"ngram_baselines_{domain}"), f"ngram_baselines_{domain}"
        if f"margin_over_{baseline},none" in result:
            n = run.evaluation.get("n-samples", {}).get(task, {}).get("effective")
            found[domain] = (result[f"margin_over_{baseline},none"], result[f"margin_over_{baseline}_interval,none"], n)
    return found


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
        text = f"The pre-trained model predicts held-out text better than {article} {name} model, in the mean of the mix"
        detail = f"by {margin:.2f} nats per token, 95% interval {interval(bounds, 2)}"
        domains = margins_by_domain(run, label, name)
        unproven = [d for d, (_, span, _) in domains.items() if above(span, 0) != "yes"]
        if domains:
            detail += f"; unproven in {', '.join(unproven)}" if unproven else f"; in each of {len(domains)} domains"
        claimed.append(Claim(text, above(bounds, 0), detail))
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
    if overlap := lexical_overlap(run):
        detail += f"; counting shared words: {overlap}"
    return Claim(text, above(bounds, chance), detail)


def _reward(run: RunData) -> Claim | None:
    last = next((r for r in reversed(run.rounds) if r.metrics("reward").get("accuracy_interval")), None)
    if last is None:
        return None
    metrics = last.metrics("reward")
    bounds, by_length = metrics.get("accuracy_interval"), metrics.get("length_accuracy")
    name = metrics.get("newest_round", last.name).replace("-", " ")
    text = f"The newest reward model prefers the better of two held-out answers of {name} above chance (50%)"
    detail = f"{share(metrics['accuracy'], bounds)} on {metrics.get('heldout_pairs')} pairs of the grades trained on"
    every = run.results(f"{last.name}/reward", f"reward_accuracy_{last.name}")
    if "acc_interval,none" in every:
        detail += f", {share(every['acc,none'], every['acc_interval,none'])} on {every['n']} of all grades"
    if by_length is not None:
        beats = {"yes": "it beats that", "no": "it does worse", "open": "it is not shown to beat that"}[above(bounds, by_length)]
        detail += f"; length alone: {percent(by_length)}, {beats}"
    return Claim(text, above(bounds, 0.5), detail)


def _wins(run: RunData) -> list[Claim]:
    found = []
    for c in win_rates(run):
        text = f"Answers of {short(c['models'][0])} win over those of {short(c['models'][1])}, judged by {short(c['judge'])}"
        detail = f"{share(c['win_rate'], c['interval'])}, ties {c['ties']}"
        if c.get("grader_win_rate") is not None:
            detail += f"; by the grader's rule {share(c['grader_win_rate'], c['grader_interval'])}, ties {c['grader_ties']}"
        found.append(Claim(text, above(c["interval"], 0.5), detail))
    return found


def _forecast(run: RunData) -> Claim | None:
    fit, measured = run.metrics("scaling-fit"), run.metrics("pretrain").get("initial_loss")
    bounds, best = fit.get("predicted_loss_interval"), fit.get("best_cell_loss")
    if measured is None or not bounds:
        return None
    inside = bool(bounds[0] <= measured <= bounds[1])
    text = "The flagship's loss lies in the interval forecast before it was trained, which lies below every cell of the sweep"
    detail = f"forecast {fit['predicted_loss']:.3f} {interval(bounds)}, measured {measured:.3f} nats per token: "
    detail += f"{'inside' if inside else 'outside'} an interval of {bounds[1] - bounds[0]:.2f}"
    detail += f"; best cell of the sweep {best:.3f}" if best is not None else "; best cell of the sweep not known"
    if not inside:
        return Claim(text, "no", detail)
    if best is None or bounds[1] >= best:
        return Claim(text, "open", detail + ("; inside, but the interval is wide" if best is not None else ""))
    return Claim(text, "yes", detail)


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
        if wins[-1].get("grader_win_rate") is not None:
            note += f"; by the grader {percent(wins[-1]['grader_win_rate'])}"
        found.append(Fact("win rate by the judge", percent(wins[-1]["win_rate"]), note))
    if run.stages:
        seconds = sum(a.manifest["cost"]["seconds"] for a in run.stages.values())
        memory = max(a.manifest["peak_memory_bytes"] or 0 for a in run.stages.values())
        found.append(Fact("whole run", duration(seconds), f"peak memory {size(memory)}"))
    return found
