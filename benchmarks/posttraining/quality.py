"""What `herd prune` removes, how long it takes, and how much of what was planted it finds.

    python benchmarks/posttraining/quality.py RUN [--sft] [--processor-time]

RUN is the folder of a finished laptop recipe (runs/laptop): its seed dialogs, rejection-sampled dialogs, prompts with references,
reward model and tokenizer are read.

planted: clean dialogs are made of the prompts and their references. Into some of them goes one flaw each, by the rules of
herd.alignment.flaws; of others a second copy is added: the same text, the same with another layout and case, or the question
asked in other words. Dialogs of the documentation that are nearly the same anyway are not planted, and count as wrongly removed.
laptop: the run's own dialogs, as `herd prune` treats them with its defaults and the grader with a known rule as the judge.
sft (--sft): the model fine-tuned on all dialogs, on the cleaned ones, on the better half, and on as many at random; the mean
score of its greedy answers on held-out prompts by the known rule.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save

from herd.alignment import prune_stage, sft_stage
from herd.alignment.flaws import FLAWS, add_flaws
from herd.alignment.quality.dialogs import Dialog
from herd.alignment.quality.embeddings import EmbeddingConfig, embed
from herd.alignment.quality.semantic import DedupConfig, clusters, keep_greedily
from herd.config.loader import compose
from herd.curation.classifiers.calibration import auc, auc_interval, wilson_interval
from herd.dialog.grader import GraderConfig
from herd.dialog.messages import Message, Role
from herd.dialog.rows import Prompt, read_prompts, write_jsonl
from herd.generation.chat import sample_answers
from herd.generation.sampler import OwnSampler, SamplingConfig
from herd.model.io import load_model
from herd.recipe.job import make_job
from herd.runs.atomic import sha256_json, write_json
from herd.runs.seeds import stream
from herd.runs.stage import Artifact, Inputs, execute
from herd.runs.statistics import bootstrap_mean

THRESHOLDS = (0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
COPIES = ("same text", "layout and case", "question reworded")
WORDINGS = (
    ("What does", "Tell me what", " do?", " does."),
    ("What is the signature of", "Give me the signature of", "?", ", please."),
    ("Write a call of", "How do I call", ".", "?"),
)
TIMED = 3  # runs of the whole pipeline


def rows_of(prompts: list[Prompt], answers: list[str], kind: str) -> list[dict[str, Any]]:
    """SFT rows with one answer each."""
    return [
        {
            "id": f"{kind}-{p.id}",
            "prompt_id": p.id,
            "messages": [m.to_dict() for m in (*p.messages, Message(Role.ASSISTANT, answer))],
        }
        for p, answer in zip(prompts, answers, strict=True)
    ]


def artifact(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A finished stage that left these dialogs."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "dialogs.jsonl", rows)
    manifest = {"stage": "import-rows", "address": sha256_json(rows), "metrics": {}, "outputs": {}, "inputs": {}}
    write_json(folder / "manifest.json", manifest)
    return folder


def prune(root: Path, dialogs: dict[str, Path], run: Path, *overrides: str) -> Artifact:
    """`herd prune` with the run's reward model of the last round."""
    job = make_job("prune", compose("prune", ["judge.kind=grader", "judge.asked=[quality]", *overrides]))
    others = {"tokens": run / "tokenize", "reward": run / "round-2/reward", "prompts": run / "dialogs"}
    return execute(prune_stage.STAGE, job.config, {"dialogs": dialogs} | others, root, "benchmark")


def rows_in(found: Artifact) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows kept, rows dropped."""
    kept, gone = (
        [json.loads(line) for line in (found / name).read_text(encoding="utf-8").splitlines()]
        for name in ("dialogs.jsonl", "dropped.jsonl")
    )
    return kept, gone


def planted_flaws(root: Path, run: Path) -> dict[str, Any]:
    """Each flaw in a tenth of the dialogs: how well reward and rules tell them from the clean ones."""
    prompts = read_prompts(run / "dialogs/train_prompts.jsonl")
    names = [*FLAWS.names(), "clean", "clean", "clean"]
    rng = stream(0, "planted flaws")
    kinds, answers = [], []
    for i, prompt in enumerate(prompts):
        other = prompts[(i + 7) % len(prompts)].reference
        name = names[i % len(names)]
        answer = prompt.reference if name == "clean" else add_flaws(prompt.reference, other, [name], rng)
        kinds.append("clean" if answer == prompt.reference else name)
        answers.append(answer)
    rows = rows_of(prompts, answers, "planted")
    kind_of = {row["id"]: kind for row, kind in zip(rows, kinds, strict=True)}
    found = prune(root, {"planted": artifact(root / "planted", rows)}, run, "steps=[cleaning,rating]")
    kept, gone = rows_in(found)
    notes = {r["id"]: r["quality"] for r in kept + gone}
    removed = {r["id"] for r in gone}
    clean_rewards = [notes[i]["reward"] for i, kind in kind_of.items() if kind == "clean" and "reward" in notes[i]]
    results: dict[str, Any] = {}
    for kind in sorted(set(kinds)):
        ids = [i for i, k in kind_of.items() if k == kind]
        rewards = [notes[i]["reward"] for i in ids if "reward" in notes[i]]
        n, m = len(clean_rewards), len(rewards)
        area = auc([1] * n + [0] * m, clean_rewards + rewards) if kind != "clean" else None
        hits = sum(i in removed for i in ids)
        results[kind] = {
            "rows": len(ids),
            "removed": hits,
            "removed_interval": wilson_interval(hits, len(ids)),
            "text_changed_by_a_rule": sum("modified" in notes[i] for i in ids),
            "clean_has_the_higher_reward": area,
            "interval": None if area is None else auc_interval(area, n, m),
        }
    metrics = found.metrics
    return {"rows": len(rows), "by_flaw": results, "removed": metrics["removed"], "rating": metrics["steps"]["rating"]}


def planted_copies(run: Path) -> dict[str, Any]:
    """Precision and recall of semantic deduplication, by embedding, clusters and threshold."""
    prompts = read_prompts(run / "dialogs/train_prompts.jsonl")
    rng = stream(0, "planted copies")
    rows = rows_of(prompts, [p.reference for p in prompts], "original")
    for turn, i in enumerate(rng.permutation(len(prompts))[:300].tolist()):
        kind, row = COPIES[turn % 3], json.loads(json.dumps(rows[i]))
        question = row["messages"][0]
        if kind == "layout and case":
            row["messages"] = [m | {"content": "  " + m["content"].upper().replace("\n\n", "\n")} for m in row["messages"]]
        if kind == "question reworded":
            for start, new_start, end, new_end in WORDINGS:
                before, found, asked = question["content"].rpartition(start)
                if found:
                    question["content"] = before + new_start + asked.removesuffix(end) + new_end
        rows.append(row | {"id": f"{kind}-{row['id']}", "of": rows[i]["id"]})
    dialogs = [
        Dialog("x", r["id"], tuple(Message(Role[m["role"].upper()], m["content"]) for m in r["messages"]), r) for r in rows
    ]
    planted = np.array(["of" in d.row for d in dialogs])
    order = np.argsort(planted, kind="stable").tolist()  # originals first
    results = []
    found = embed(dialogs, EmbeddingConfig("tfidf", 128), Inputs({}, {}), 0, "meta")
    # The default decides by all words; its 128 main directions, in which it clusters, are shown for comparison.
    for name, vectors in {"all words": found.of_words, "128 directions": found.reduced}.items():
        for per_cluster in (0, 500):
            cluster = clusters(found.reduced, DedupConfig(0.85, per_cluster), 0)
            for threshold in THRESHOLDS:
                outcome = keep_greedily(vectors, cluster, order, threshold)
                right = [dialogs[t].id == d.row.get("of") for d, t in zip(dialogs, outcome.twin.tolist(), strict=True)]
                removed = ~outcome.kept
                caught = Counter(d.id.partition("-")[0] for d, r in zip(dialogs, removed, strict=True) if r and "of" in d.row)
                results.append(
                    {
                        "cosines_of": name,
                        "clusters": int(cluster.max()) + 1,
                        "threshold": threshold,
                        "removed": int(removed.sum()),
                        "precision": float(planted[removed].mean()) if removed.any() else None,
                        "recall": float(removed[planted].mean()),
                        "recall_by_kind": {kind: caught[kind] / 100 for kind in COPIES},
                        "twin_is_the_original": float(np.array(right)[planted & removed].mean()),
                    }
                )
    return {"originals": len(prompts), "planted": int(planted.sum()), "results": results}


def laptop(root: Path, run: Path, clock: Any) -> dict[str, Any]:
    """The run's own dialogs under the defaults."""
    sources = {"seed": run / "dialogs", "round-1": run / "round-1/reject", "round-2": run / "round-2/reject"}
    seconds = []
    for turn in range(TIMED):
        start = clock()
        found = prune(root / f"turn-{turn}", sources, run)
        seconds.append(clock() - start)
    kept, gone = rows_in(found)
    metrics = found.metrics

    def seeds(rows: list[dict[str, Any]]) -> dict[str, int]:
        own = [r for r in rows if r["quality"]["source"] == "seed"]
        return {"rows": len(own), "flawed": sum(bool(r["flaws"]) for r in own)}

    def scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
        own = [r["score"] for r in rows if "score" in r]
        return {"rows": len(own), "mean": float(np.mean(own)), "interval": bootstrap_mean(own, stream(0, "scores")).to_list()}

    names = ("rows_in", "rows_out", "removed", "modified", "rows_after", "steps", "seconds")
    return {name: metrics[name] for name in names} | {
        "seconds_per_1000_rows": {
            "median": 1000 * float(np.median(seconds)) / metrics["rows_in"],
            "all": [1000 * s / metrics["rows_in"] for s in seconds],
        },
        "seed_dialogs_with_a_planted_flaw": {"kept": seeds(kept), "dropped": seeds(gone)},
        "sampled_dialogs_score_by_the_known_rule": {"kept": scores(kept), "dropped": scores(gone)},
    }


def fine_tuning(root: Path, run: Path, prompts: int) -> dict[str, Any]:
    """Greedy answers of models fine-tuned on the dialogs before and after, equal optimizer settings."""
    sources = {"seed": run / "dialogs", "round-1": run / "round-1/reject", "round-2": run / "round-2/reject"}
    cleaned = prune(root / "cleaned", sources, run, "steps=[cleaning]")
    good = prune(root / "good", sources, run, "steps=[cleaning,rating]", "rating.share=0.5")
    rows, _ = rows_in(cleaned)
    size = good.metrics["rows_out"]
    chosen = sorted(stream(0, "as many at random").permutation(len(rows))[:size].tolist())
    at_random = artifact(root / "random", [rows[i] for i in chosen])
    arms = {
        "all": sources,
        "cleaned": {"pruned": cleaned.path},
        "cleaned, better half": {"pruned": good.path},
        "cleaned, as many at random": {"pruned": at_random},
    }
    heldout = read_prompts(run / "dialogs/heldout_prompts.jsonl")[:prompts]
    grader = GraderConfig()
    scores: dict[str, np.ndarray] = {}
    results: dict[str, Any] = {}
    for name, dialogs in arms.items():
        # Equal steps: fewer rows are read more often.
        epochs = 2 * len(rows) / (len(rows) if name in ("all", "cleaned") else size)
        job = make_job("sft", compose("sft", [f"epochs={epochs:.3f}"]))
        others = {"tokens": run / "tokenize", "base": run / "pretrain"}
        made = execute(sft_stage.STAGE, job.config, {"dialogs": dialogs} | others, root, f"sft {name}")
        tokenizer = sft_stage.load_tokenizer(Inputs({"tokens": Artifact.open(run / "tokenize")}, {}))
        sampling = SamplingConfig(max_new_tokens=48, temperature=0.0, top_p=1.0, seed=0)
        sampler = OwnSampler(load_model(made / "model"), 64)
        given = sample_answers(sampler, tokenizer, [p.messages for p in heldout], sampling)
        scores[name] = np.array(
            [grader.score(p.task, p.reference, a.text, a.finished) for p, [a] in zip(heldout, given, strict=True)]
        )
        difference = scores[name] - scores["all"]
        results[name] = {
            "steps": made.metrics["steps"],
            "score": float(scores[name].mean()),
            "less_all": float(difference.mean()),
            "less_all_interval": bootstrap_mean(difference, stream(0, "sft", name)).to_list(),
        }
    return {"heldout_prompts": len(heldout), "rows": len(rows), "better_half": size, "arms": results}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--sft", action="store_true", help="also fine-tune on what is left (minutes)")
    parser.add_argument("--prompts", type=int, default=150, help="held-out prompts that are answered for --sft")
    parser.add_argument("--processor-time", action="store_true", help="count processor time of this process, not the wall clock")
    arguments = parser.parse_args()
    run = arguments.run.resolve()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        results: dict[str, Any] = {
            "clock": "processor time" if arguments.processor_time else "wall",
            "laptop": laptop(root / "laptop", run, clock),
            "planted_flaws": planted_flaws(root / "flaws", run),
            "planted_copies": planted_copies(run),
        }
        if arguments.sft:
            results["sft"] = fine_tuning(root / "sft", run, arguments.prompts)
    switches = [s for s, on in (("--sft", arguments.sft), ("--processor-time", arguments.processor_time)) if on]
    print(save(__file__, " ".join(["python benchmarks/posttraining/quality.py runs/laptop", *switches]), results))


if __name__ == "__main__":
    main()
