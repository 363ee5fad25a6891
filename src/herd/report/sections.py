"""The page's sections. Each sentence is made from the run's numbers; what is missing is left out."""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from herd.report import figures_evaluation, figures_training
from herd.report.blocks import Block, Section, above
from herd.report.claims import (
    base_label,
    claims,
    facts,
    headline,
    lexical_overlap,
    margins_by_domain,
    reward_differences,
    win_rates,
)
from herd.report.formats import duration, interval, number, percent, scientific, share, si, size
from herd.report.notebook import NotebookFigure
from herd.report.run_data import Round, RunData
from herd.report.style import png, short


def all_sections(run: RunData, scaling_figures: list[NotebookFigure], chat_samples: int) -> list[Section]:
    """Every section that has something to show, in the order of the recipe."""
    sections = [
        overview(run),
        data(run),
        scaling(run, scaling_figures),
        pretraining(run),
        post_training(run),
        evaluation(run),
        dialogs(run, chat_samples),
        cost(run),
        provenance(run),
    ]
    return [section for section in sections if section.blocks]


def overview(run: RunData) -> Section:
    section = Section("overview", "At a glance")
    if shown := facts(run):
        section.blocks.append(Block("facts", shown))
    if claimed := claims(run):
        section.blocks.append(Block("claims", claimed))
    return section


def data(run: RunData) -> Section:
    section = Section("data", "Data")
    curated, tokens = run.metrics("curate"), run.metrics("tokenize")
    if curated.get("documents_in"):
        kept = curated["documents_out"] / curated["documents_in"]
        section.text(
            f"{curated['documents_in']:,} raw documents came in; {curated['documents_out']:,} ({percent(kept)}) with "
            f"{si(curated['characters_out'])} characters went out.",
            "Bars show what each step leaves, and what share of the step before it dropped; every decision has a row in "
            "the ledger.",
        )
    _draw(section, run, figures_training.funnel, "funnel", "Documents and characters left after each step.")
    section.table(["dropped for", "documents"], _reasons(run), "The ten commonest reasons.")
    heldout = tokens.get("heldout_tokens_by_domain")
    if tokens.get("vocab_size"):
        section.text(
            f"The tokenizer has {tokens['vocab_size']:,} entries and makes "
            f"{number(tokens.get('characters_per_token'), 2)} characters of held-out text into a token.",
            f"Held out by document: {si(sum(heldout.values()))} tokens." if heldout else None,
        )
    _draw(section, run, figures_training.domains, "domains", "Training tokens and compression by domain.")
    return section


def scaling(run: RunData, figures: list[NotebookFigure]) -> Section:
    section = Section("scaling", "Scaling laws and the forecast")
    fit, trained = run.metrics("scaling-fit"), run.metrics("pretrain")
    if fit:
        law = fit.get("alpha")
        section.text(
            f"The sweep has {len(fit.get('budgets') or [])} budgets, from {scientific(min(fit['budgets']))} to "
            f"{scientific(max(fit['budgets']))} FLOPs." if fit.get("budgets") else None,
            f"{fit['optima']} of {len(fit['budgets'])} budgets have an optimum inside their points."
            if fit.get("optima") is not None else None,
            f"Compute-optimal tokens grow as C^{law:.3f}, 95% interval {interval(fit.get('alpha_interval')) or 'not known'} "
            "(the paper: 0.53)." if law is not None else "The sweep gives no power law; the flagship's size is then no "
            f"forecast but a choice (method: {fit.get('status')}).",
            f"No interval assumes that another seed moves a cell's loss by less than {fit['noise_floor']:g} nats "
            "(standard deviation)." if fit.get("noise_floor") else None,
        )  # fmt: skip
    for figure in figures:
        section.figure(figure.name, figure.image, figure.title, f"{figure.title}. {figure.caption}")
    if fit.get("predicted_loss") is not None:
        bounds, measured = fit.get("predicted_loss_interval"), trained.get("initial_loss")
        verdict = None
        if measured is not None and bounds:
            where = "inside" if bounds[0] <= measured <= bounds[1] else "outside"
            verdict = (
                f"Measured: {measured:.3f}, {where} an interval of {bounds[1] - bounds[0]:.2f} nats "
                f"({measured - fit['predicted_loss']:+.3f} from the forecast)."
            )
            if (best := fit.get("best_cell_loss")) is not None:
                reaches = "reaches" if bounds[1] >= best else "lies below"
                verdict += f" The best cell of the sweep has {best:.3f}; the interval {reaches} it."
        flagship = fit.get("flagship") or {}
        sizes, counts = flagship.get("parameters_interval"), flagship.get("tokens_interval")
        section.text(
            f"Before the flagship was trained, its loss was forecast as {fit['predicted_loss']:.3f} nats per token, "
            f"95% interval {interval(bounds) or 'not known'}, for {si(flagship.get('parameters'))} parameters on "
            f"{si(flagship.get('tokens'))} tokens ({scientific(flagship.get('flops'))} FLOPs), "
            f"{number(fit.get('extrapolation_ratio'), 1)} times the largest budget of the sweep.",
            f"The optimal size lies in [{si(sizes[0])}, {si(sizes[1])}] parameters, the optimal number of tokens in "
            f"[{si(counts[0])}, {si(counts[1])}]."
            if sizes and counts
            else None,
            verdict,
        )
    _draw(section, run, figures_training.forecast, "forecast", "Forecast loss with its interval, and the loss measured.")
    return section


def pretraining(run: RunData) -> Section:
    section = Section("pretraining", "Pre-training the flagship")
    trained, label = run.metrics("pretrain"), base_label(run)
    if trained:
        section.text(
            f"{si(trained.get('parameters'))} parameters, {si(trained.get('tokens'))} tokens, "
            f"{scientific(trained.get('flops'))} FLOPs ({trained.get('flops_convention')}), "
            f"{duration(trained.get('seconds'))} at {si(trained.get('tokens_per_second'))} tokens per second.",
            "Shading marks the stages of the curriculum; the mix of domains changes with the last one, so its training loss "
            "does not continue the curve before it.",
        )
    caption = "Loss, learning rate, batch and row length by tokens."
    _draw(section, run, figures_training.pretraining, "pretraining", caption)
    by_stage = trained.get("loss_by_stage") or {}
    order = list(dict.fromkeys(row.get("stage") for row in run.rows(run.find("pretrain"))))  # a manifest's keys are sorted
    stages = sorted(by_stage, key=lambda name: order.index(name) if name in order else len(order))
    section.table(
        ["end of stage", "held-out loss, nats per token"],
        [[name.replace("_", " "), number(by_stage[name])] for name in stages],
    )
    margin = run.results(label, "ngram_baselines") if label else {}
    if "margin_over_bigram,none" in margin:
        notes = run.evaluation.get("notes", {}).get("ngram_baselines", {})
        section.text(
            f"A unigram and an interpolated bigram model were fitted on {si(notes.get('training_tokens'))} training tokens "
            f"(bigram weight {number(notes.get('bigram_weight'), 2)}, fitted on training documents kept apart) and scored "
            f"on the same held-out tokens. The model is {margin['margin_over_bigram,none']:.2f} nats per token better than "
            f"the bigram, {interval(margin['margin_over_bigram_interval,none'], 2)}; intervals are bootstraps over documents."
        )
        section.table(*_margin_table(run, label or ""))
    if label:
        _draw(section, run, lambda r: figures_evaluation.baselines(r, label), "baselines",
              "Nats per token of the model and of n-gram models, by domain.")  # fmt: skip
    return section


def post_training(run: RunData) -> Section:
    section = Section("post-training", "Post-training")
    if not run.rounds:
        return section
    section.text(
        "Each round: preferences, a reward model, rejection sampling, supervised fine-tuning, DPO, averaging. Preferences are "
        "graded by a known rule in the place of people, so reward accuracy says how well that rule was learned.",
        *(_pairs_made(r) for r in run.rounds),
    )
    rows = []
    for r in run.rounds:
        reward, reject, sft, dpo = (r.metrics(stage) for stage in ("reward", "reject", "sft", "dpo"))
        rows.append(
            [
                r.name.replace("-", " "),
                share(reward.get("accuracy"), reward.get("accuracy_interval")),
                percent(reward.get("length_accuracy")),
                f"{number(reject.get('reward_best'), 2)} / {number(reject.get('reward_all'), 2)}",
                _best_and_all(reject),
                number(sft.get("loss"), 2),
                share(dpo.get("rewards/accuracies"), dpo.get("rewards/accuracies_interval")),
                number(dpo.get("rewards/margins"), 2),
            ]
        )
    header = ["", "reward accuracy", "by length alone", "reward of best / all samples", "grade of best / all samples"]
    header += ["SFT loss", "DPO reward accuracy", "DPO margin"]
    caption = (
        "Accuracies and margins on the round's own held-out pairs of the grades that are trained on; SFT loss in nats per token "
        "on held-out references. The reward of the best sample cannot be below that of all, by which it was chosen; its grade by "
        "the known rule can. ✓ higher, ✗ lower than that of all answers to the same prompt, ~ neither is shown (95%)."
    )
    section.table(header, rows, caption)
    _draw(section, run, figures_training.dpo, "dpo",
          "Implicit rewards over the steps of DPO: chosen and rejected, their margin, and the share of pairs ranked right, "
          "on training pairs (the table has the held-out ones). Dashed: the second variant. Scales differ by round.")  # fmt: skip
    section.text(*_about_dpo(run), *run.caveats)
    return section


def evaluation(run: RunData) -> Section:
    section = Section("evaluation", "Evaluation")
    if not run.evaluation:
        return section
    section.text(
        "Whiskers are 95% intervals: Wilson's for shares, bootstraps over documents for bits per byte. They hold the "
        "chance in the examples alone; another training run would vary by more."
    )
    metric, chance = headline(run)
    notes = run.evaluation.get("notes", {}).get("documentation_choice", {})
    _draw(section, run, figures_evaluation.multiple_choice, "multiple_choice", "Multiple-choice accuracy of each model.")
    if notes.get("items"):
        kinds = ", ".join(f"{n} for the {kind}" for kind, n in notes.get("items_by_kind", {}).items())
        section.text(
            f"{notes['items']:,} questions made from held-out documentation ({kinds}), with three wrong answers of similar "
            f"length from {'the same package' if notes.get('rivals') == 'package' else 'any package'}; chance is "
            f"{percent(chance, 0)}. No answer occurs in the training documents "
            f"({notes.get('left_out', {}).get('text_in_training', 0)} texts that do were left out). The headline is {metric}, "
            "set after scores of an earlier run had been seen; the table has the other ways to compare likelihoods too.",
            f"Choosing the answer that shares most words with its question, without any model, has {overlap}."
            if (overlap := lexical_overlap(run))
            else None,
        )
    caption = "Accuracy in % by how likelihoods are normalised; NLL of the true answer per character."
    section.table(*_choice_table(run), caption)
    section.text(_paired(run))
    _draw(section, run, figures_evaluation.bits_per_byte, "bits_per_byte",
          "Bits per byte by domain, models in the order of the legend; the shape of a point is its round.")  # fmt: skip
    _draw(section, run, figures_evaluation.preferences, "preferences",
          "Reward accuracy on held-out pairs of all grades, not only of those trained on, and win rates.")  # fmt: skip
    for c in win_rates(run):
        section.text(
            f"{short(c['models'][0])} beats {short(c['models'][1])} in {share(c['win_rate'], c['interval'])} of held-out "
            f"prompts, judged by {short(c['judge'])} (ties: {c['ties']}, each counted half).",
            f"By the grader's rule it wins {share(c['grader_win_rate'], c['grader_interval'])} of them "
            f"(ties: {c['grader_ties']}); mean grades {c['grades'][0]:.2f} and {c['grades'][1]:.2f} of 1."
            if c.get("grader_win_rate") is not None else None,
        )  # fmt: skip
    for c in reward_differences(run):
        best = f", the best of {len(c['best_of'])} members," if c["best_of"] else ""
        section.text(
            f"Mean reward of the greedy answers of {short(c['models'][0])} less that of {short(c['models'][1])}{best} by "
            f"{short(c['judge'])}: {c['difference']:+.3f} {interval(c['interval'], 3)}, paired over {c['n']} held-out "
            f"prompts; by the grader's rule {c['grade_difference']:+.3f} {interval(c['grade_interval'], 3)} of 1."
        )
    if win_rates(run):
        section.text(
            "The judges also shaped the data of the models they judge, so their win rates say how well a model follows its "
            "judge. The grader's rule made the preferences, and compares these answers with the references of held-out prompts."
        )
    needle = run.evaluation.get("notes", {}).get("needle", {})
    _draw(section, run, figures_evaluation.needle, "needle",
          f"Needle in a haystack: share of {needle.get('trials_per_cell')} trials a cell in which the true value is "
          f"likelier than every false one; chance is {percent(needle.get('chance'))} (line on the scale).")  # fmt: skip
    section.table(*_needle_table(run))
    skipped = run.evaluation.get("skipped", {})
    section.text(*(f"Not measured: {name} ({reason})." for name, reason in skipped.items()))
    return section


def dialogs(run: RunData, most: int) -> Section:
    section = Section("dialogs", "What the models say")
    rows = _win_rate_samples(run)
    if not rows or not most:
        return section
    last = rows[-1]["models"]
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["models"] == last:
            by_task.setdefault(row["task"], []).append(row)
    # The first prompts of each task in turn: an unselected sample.
    turns = [group[i] for i in range(most) for group in by_task.values() if i < len(group)][:most]
    section.text("The first held-out prompts of each kind, greedy answers, not selected. Rewards in brackets.")
    section.blocks.append(
        Block(
            "dialogs",
            [
                {
                    "task": row["task"],
                    "prompt": row["prompt"],
                    "reference": row["reference"],
                    "answers": [
                        {
                            "model": short(label),
                            "text": row["answers"][label],
                            "reward": reward,
                            "best": reward == max(row["rewards"]),
                        }
                        for label, reward in zip(row["models"], row["rewards"], strict=True)
                    ],
                }
                for row in turns
            ],
        )
    )
    return section


def cost(run: RunData) -> Section:
    section = Section("cost", "What it cost")
    if run.stages:
        seconds = sum(a.manifest["cost"]["seconds"] for a in run.stages.values())
        flops = sum(a.manifest["cost"].get("flops_6N") or 0.0 for a in run.stages.values())
        memory = max(a.manifest["peak_memory_bytes"] or 0 for a in run.stages.values())
        section.text(
            f"{duration(seconds)} in all stages together, {scientific(flops)} FLOPs counted (6N a token trained on, 2N a token "
            f"read), peak memory {size(memory)} "
            "(children included). A stage without a bar on the right does not count its FLOPs."
        )
    _draw(section, run, figures_training.costs, "costs", "Seconds and FLOPs of each stage.")
    return section


def provenance(run: RunData) -> Section:
    section = Section("provenance", "Provenance")
    rows = []
    for label, artifact in run.stages.items():
        m = artifact.manifest
        identity = [label, m["stage"], str(m["address"])[:12], str(m["seed"])]
        rows.append([*identity, duration(m["cost"]["seconds"]), size(m["peak_memory_bytes"]), str(m["commit"] or "")[:20]])
    caption = (
        "The address is the hash of the stage's version, configuration and inputs; `herd lineage PATH` prints the whole tree."
    )
    section.table(["label", "command", "address", "seed", "time", "memory", "commit"], rows, caption)
    return section


def _draw(section: Section, run: RunData, figure: Callable[[RunData], Figure | None], name: str, caption: str) -> None:
    drawn = figure(run)
    section.figure(name, png(drawn) if drawn is not None else None, caption, caption)


def _margin_table(run: RunData, label: str) -> tuple[list[str], list[list[str]], str]:
    epochs = run.metrics("pretrain").get("epochs") or {}
    rows = []
    for domain, (margin, bounds, documents) in margins_by_domain(run, label).items():
        read = f"{number(epochs[domain], 2)} times" if domain in epochs else "–"
        proven = {"yes": "✓ better", "no": "✗ worse", "open": "~ unproven"}[above(bounds, 0)]
        rows.append([domain, f"{margin:+.2f} {interval(bounds, 2)}", f"{documents or '–'}", read, proven])
    header = ["", "nats per token better than the bigram", "held-out documents", "its tokens were read", ""]
    caption = "Unproven: the 95% interval holds 0. A bootstrap over few documents gives an interval that is too narrow."
    return header, rows, caption


def _pairs_made(round_: Round) -> str | None:
    """How the preferences of a round came about."""
    models = round_.metrics("preferences").get("heldout", {}).get("models")
    if not models:
        return None
    name = round_.name.replace("-", " ")
    if set(models) == {"reference"}:
        return f"Pairs of {name}: a reference, at times lightly flawed, against one with more rule-made flaws."
    return f"Pairs of {name}: one sample each of two models ({', '.join(sorted(models))}), graded by the same rule."


def _best_and_all(reject: dict[str, Any]) -> str:
    bounds = reject.get("score_gain_interval")
    mark = f" {'✓' if bounds[0] > 0 else '✗' if bounds[1] < 0 else '~'}" if bounds else ""
    return f"{number(reject.get('score_best'), 3)} / {number(reject.get('score_all'), 3)}{mark}"


def _about_dpo(run: RunData) -> list[str]:
    """What to know of DPO before its win rate over SFT is read, as far as the stages tell."""
    found = []
    edited = [r.metrics("preferences").get("train", {}).get("edited", 0) for r in run.rounds if "dpo" in r.stages]
    if any(edited):
        counts = " and ".join(str(count) for count in edited)
        found.append(
            f"DPO also learns from edited answers, the references ({counts} training pairs by round), which SFT did not see as "
            "answers to those prompts: a win over SFT is in part a win of more data."
        )
    variants = [
        [a.manifest["config"] | {"seed": None} for a in r.stages.values() if a.manifest["stage"] == "dpo"] for r in run.rounds
    ]
    if any(len(v) > 1 for v in variants) and all(config == v[0] for v in variants for config in v):
        found.append("The variants of DPO that are averaged differ by their seed alone.")
    return found


def _reasons(run: RunData, most: int = 10) -> list[list[str]]:
    steps = run.read("curate", "funnel.json") or []
    reasons = [(n, f"{step['step']}: {rule.replace('_', ' ')}") for step in steps for rule, n in step["dropped"].items()]
    return [[name, f"{n:,}"] for n, name in sorted(reasons, key=lambda r: (-r[0], r[1]))[:most]]


def _choice_table(run: RunData) -> tuple[list[str], list[list[str]]]:
    metrics = ("acc", "acc_norm", "acc_bytes", "acc_token", "acc_mutual_info")
    rows = []
    for label in run.labels("documentation_choice"):
        result = run.results(label, "documentation_choice")
        scores = [f"{100 * result[f'{m},none']:.1f}" for m in metrics]
        rows.append([short(label), *scores, number(result.get("choice_nll_per_character,none"))])
    return ["", *metrics, "NLL / character"], rows


def _needle_table(run: RunData) -> tuple[list[str], list[list[str]], str]:
    rows = []
    for label in run.labels("needle"):
        result = run.results(label, "needle")
        rows.append(
            [
                short(label),
                share(result["acc,none"], result["acc_interval,none"]),
                share(result["exact_match,none"], result["exact_match_interval,none"]),
                str(result["n"]),
            ]
        )
    return ["", "accuracy by likelihood", "exact match, greedy", "trials"], rows, "All lengths and depths together."


def _paired(run: RunData) -> str | None:
    found = [c for c in run.evaluation.get("comparisons", []) if c["task"] == "documentation_choice"]
    if not found:
        return None
    strongest = max(found, key=lambda c: abs(c["difference"]))
    a, b = strongest["models"]
    return (
        f"On the same questions, the largest difference is {short(a)} less {short(b)}: "
        f"{100 * strongest['difference']:+.1f} points, paired 95% interval "
        f"{interval(strongest['interval'], as_percent=True)}, McNemar p = {strongest['mcnemar_p']:.2g} "
        f"(the largest of {len(found)} such comparisons, so read p with that in mind)."
    )


def _win_rate_samples(run: RunData) -> list[dict[str, Any]]:
    import json

    artifact = run.find("evaluate")
    path = artifact.path / "samples_win_rate.jsonl" if artifact else None
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
