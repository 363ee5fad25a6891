"""What a small reward model learns from 774 real human preferences, honestly: against length, bag of words and chance.

The data are open-instruct's human evaluation: 1,150 graded comparisons of four models on 332 prompts, 376 of them ties; found
through ``HERD_REFERENCE_DATA``, never copied. Cross-validation is by prompt: no prompt, hence no response, is in both parts of a
fold. Every method is trained on the same folds, and every number is over held-out comparisons, with a 95% interval over prompts.
The learning rate is that of conf/reward.yaml and one pass is made, as InstructGPT made it, both set before the outcome was
seen; the intervals do not hold the spread over seeds.

    python benchmarks/posttraining/real_preferences.py [--run RUN] [--causal]

RUN is the folder of a finished recipe, whose tokenizer and pre-trained model are the second backbone. Without it the tokenizer
is trained on the texts, which uses no label, and only the random backbone is measured. ``--causal`` trains RUN's backbone on
causal rows as well.
"""

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
import zipfile
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save

from herd.alignment.length_limit import length_limit
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Grade, Preference, PreferenceFilter
from herd.dialog.rows import Counted
from herd.model.config import ModelConfig
from herd.model.counts import parameter_count
from herd.model.heads import RewardModel
from herd.model.io import load_model
from herd.model.transformer import Transformer
from herd.runs.seeds import stream
from herd.runs.stage import StageRun
from herd.runs.statistics import clustered_wilson
from herd.training.fit import fit
from herd.training.optimizer import OptimizerConfig
from herd.training.ranking import paired_interval, ranking_accuracy
from herd.training.reward import Comparison, RewardModule, RowLayout, comparisons, reward_steps, score_groups
from herd.training.schedule import ScheduleConfig, step_schedule
from herd.training.sequences import Group
from herd.training.trainer_config import TrainerConfig

FOLDS, WINDOW, SEED = 5, 1024, 0
LEARNING_RATE, EPOCHS, BATCH = 1e-3, 1, 8
SHAPE = {"dim": 56, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 160, "max_seq_len": WINDOW, "tie_embeddings": True}
SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_sheet(path: Path) -> list[dict[str, str]]:
    """Rows of the first sheet of an .xlsx file, by the names in its first row."""
    with zipfile.ZipFile(path) as archive:
        items = ET.fromstring(archive.read("xl/sharedStrings.xml"))
        shared = ["".join(t.text or "" for t in item.iter(f"{SHEET}t")) for item in items]
        rows = []
        for row in ET.fromstring(archive.read("xl/worksheets/sheet1.xml")).iter(f"{SHEET}row"):
            cells = {}
            for cell in row:
                value = cell.find(f"{SHEET}v")
                if value is not None and value.text is not None:
                    text = shared[int(value.text)] if cell.get("t") == "s" else value.text
                    cells[re.sub(r"\d", "", cell.get("r", ""))] = text
            rows.append(cells)
    header = rows[0]
    return [{header[column]: text for column, text in row.items() if column in header} for row in rows[1:]]


def read_annotations(folder: Path) -> list[dict[str, str]]:
    """Graded comparisons with the texts of the .jsonl file, whose copies in the sheet are cut here and there."""
    responses: dict[tuple[str, str], str] = {}
    for line in (folder / "eval_instances_tulu_1.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        responses |= {(row["id"], c["model"]): c["completion"] for c in row["completions"]}
    graded = [row for row in read_sheet(folder / "eval_annotations_tulu_1.xlsx") if row.get("preference")]
    for row in graded:
        row |= {f"completion_{side}": responses[row["instance_id"], row[f"model_{side}"]] for side in "ab"}
    return graded


def preferences(graded: list[dict[str, str]]) -> list[Preference]:
    """The comparisons that are no ties."""
    rows = []
    for row in graded:
        if row["preference"] == "tie":
            continue
        better, worse = "ab" if row["preference"].startswith("a-") else "ba"
        grade = Grade.SLIGHTLY_BETTER if "slightly" in row["preference"] else Grade.BETTER
        says = [(Message(Role.ASSISTANT, row[f"completion_{side}"]),) for side in (better, worse)]
        prompt = (Message(Role.USER, row["prompt"]),)
        models = {"chosen": row[f"model_{better}"], "rejected": row[f"model_{worse}"]}
        rows.append(Preference(row["id"], row["instance_id"], prompt, *says, grade, models=models))
    return rows


def agreement(graded: list[dict[str, str]]) -> dict[str, Any]:
    """How far two people agree who graded the same two responses."""
    same = defaultdict(list)
    for row in graded:
        first, second = sorted((row["model_a"], row["model_b"]))
        lean = 0 if row["preference"] == "tie" else (1 if row["preference"].startswith("a-") == (row["model_a"] == first) else -1)
        same[row["instance_id"], first, second].append((row["evaluator"], lean))
    twice = [(a[1], b[1], key[0]) for key, given in same.items() for a, b in itertools.combinations(given, 2) if a[0] != b[0]]
    decided = [(a == b, prompt) for a, b, prompt in twice if a and b]
    exact = [(a == b, prompt) for a, b, prompt in twice]
    found: dict[str, Any] = {"responses_compared_by_two_or_more": sum(len({e for e, _ in given}) > 1 for given in same.values())}
    for name, rows in (("same_of_better_tie_worse", exact), ("same_side_where_neither_says_tie", decided)):
        hits, prompts = zip(*rows, strict=True)
        found[name] = {"share": float(np.mean(hits)), "interval": clustered_wilson(hits, prompts).to_list(), "pairs": len(hits)}
    return found


def folds_of(prompts: list[str]) -> np.ndarray:
    """Which fold each comparison is held out in."""
    names = sorted(set(prompts))
    place = {names[int(i)]: n % FOLDS for n, i in enumerate(stream(SEED, "folds").permutation(len(names)))}
    return np.array([place[prompt] for prompt in prompts])


def linear_scores(features: np.ndarray | csr_matrix, folds: np.ndarray) -> np.ndarray:
    """Out-of-fold scores (n, 2) of a logistic regression on differences; rows of `features`: chosen, rejected, chosen, ..."""
    chosen, rejected = features[::2], features[1::2]
    scores = np.zeros((chosen.shape[0], 2))
    for fold in range(FOLDS):
        train = folds != fold
        difference = chosen[train] - rejected[train]
        stacked = np.concatenate if isinstance(difference, np.ndarray) else vstack
        labels = np.repeat([1, 0], difference.shape[0])
        model = LogisticRegression(fit_intercept=False, max_iter=2000).fit(stacked([difference, -difference]), labels)
        for side, x in enumerate((chosen[~train], rejected[~train])):
            scores[~train, side] = model.decision_function(x)
    return scores


def word_counts(texts: list[str]) -> csr_matrix:
    """log(1 + count) of each lower-case word."""
    vocabulary: dict[str, int] = {}
    data, columns, starts = [], [], [0]
    for text in texts:
        counts = Counter(re.findall(r"\w+|[^\w\s]", text.lower()))
        columns += [vocabulary.setdefault(word, len(vocabulary)) for word in counts]
        data += np.log1p(list(counts.values())).tolist()
        starts.append(len(columns))
    return csr_matrix((data, columns, starts), shape=(len(texts), len(vocabulary)))


def reward_scores(backbone: Any, tokenizer: Tokenizer, data: list[Comparison], folds: np.ndarray, row: str) -> np.ndarray:
    """Out-of-fold scores (n, 2) of reward models, one a fold, each from a fresh `backbone()`."""
    scores = np.zeros((len(data), 2))
    schedule = ScheduleConfig(kind="cosine", warmup_share=0.1, final=0.1)
    for fold in range(FOLDS):
        model = RewardModel(backbone(), SEED)
        train = [comparison for comparison, f in zip(data, folds, strict=True) if f != fold]
        source = reward_steps(train, RowLayout(WINDOW, tokenizer.pad_id, row), BATCH, 8192, EPOCHS, SEED)
        module = RewardModule(model, OptimizerConfig(lr=LEARNING_RATE), step_schedule(schedule, LEARNING_RATE, len(source)))
        trainer = TrainerConfig(log_every_steps=1000, checkpoint_every_steps=100_000)
        with tempfile.TemporaryDirectory() as folder:
            fit(module, source, trainer, StageRun(Path(folder), seed=SEED))
        groups = [Group.of(c.responses, c.prompt_tokens) for c, f in zip(data, folds, strict=True) if f == fold]
        scores[folds == fold] = score_groups(model, groups, 32)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="folder of a finished recipe")
    parser.add_argument("--causal", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ.get("HERD_REFERENCE_DATA", "../shared/data"))
    folder = root / "preference" / "open-instruct"
    if not folder.is_dir():
        sys.exit(f"{folder} is not there: set HERD_REFERENCE_DATA to the folder of the reference data.")
    graded = read_annotations(folder)
    texts = [text for row in graded for text in (row["prompt"], row["completion_a"], row["completion_b"])]
    if options.run:
        tokenizer = Tokenizer.load(options.run / "tokenize" / "tokenizer")
    else:
        tokenizer = train_tokenizer([texts], TokenizerConfig(vocab_size=1024, special_tokens=11, fill_with_reserved=True))
    dropped, fitted = Counted(), Counted()
    usable = PreferenceFilter(grades=["better", "slightly_better"]).select(preferences(graded), dropped)
    rows, data = [], []
    for row in usable:
        made = comparisons([row], tokenizer, WINDOW, fitted)
        if made:
            rows.append(row)
            data += made
    prompts = [row.prompt_id for row in rows]
    folds = folds_of(prompts)
    lengths = np.array([comparison.response_tokens for comparison in data], dtype=np.float64)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE)

    def fresh() -> Transformer:
        model = Transformer(shape)
        model.init_weights(SEED)
        return model

    size = np.stack([lengths.ravel() / 100, np.log(lengths.ravel())], axis=1)
    words = word_counts([row_text[0].content for row in rows for row_text in (row.chosen, row.rejected)])
    methods = {
        "length": lambda: linear_scores(size, folds),
        "bag_of_words": lambda: linear_scores(words, folds),
        "reward_model_random_backbone": lambda: reward_scores(fresh, tokenizer, data, folds, "block"),
    }
    backbones: dict[str, Any] = {"random": {"parameters": parameter_count(shape)}}
    if options.run:
        trained = load_model(options.run / "pretrain" / "model").config
        backbones["pretrained"] = {"parameters": parameter_count(trained), "text": "documentation, by the laptop recipe"}
        for row in ("block", "causal") if options.causal else ("block",):
            methods[f"reward_model_pretrained_backbone_{row}"] = lambda row=row: reward_scores(
                lambda: load_model(options.run / "pretrain" / "model"), tokenizer, data, folds, row
            )
    results: dict[str, Any] = {
        "data": {
            "comparisons": len(graded),
            "ties": sum(row["preference"] == "tie" for row in graded),
            "used": len(data),
            "prompts": len(set(prompts)),
            "dropped": dropped.dropped | fitted.dropped,
            "mean_response_tokens": float(lengths.mean()),
            "length_limit": length_limit(fitted.lengths, WINDOW).to_dict(),
            "apart": sum(RowLayout(WINDOW, tokenizer.pad_id).apart(comparison) for comparison in data),  # rows of their own
        },
        "people": agreement(graded),
        "settings": {"folds": FOLDS, "lr": LEARNING_RATE, "epochs": EPOCHS, "batch": BATCH, "seed": SEED, "backbones": backbones},
        "methods": {},
    }
    hits: dict[str, np.ndarray] = {}
    clearly = np.array([row.grade is Grade.BETTER for row in rows])
    for name, method in methods.items():
        start = time.process_time()
        scores = method()
        hits[name] = (scores[:, 0] > scores[:, 1]).astype(float)
        found = asdict(ranking_accuracy(scores, lengths, prompts))
        for kind, which in (("clearly_better", clearly), ("slightly_better", ~clearly)):
            of = [p for p, w in zip(prompts, which, strict=True) if w]
            found[kind] = {
                "accuracy": float(hits[name][which].mean()),
                "interval": clustered_wilson(hits[name][which], of).to_list(),
                "pairs": int(which.sum()),
            }
        if name != "length":
            difference = hits[name] - hits["length"]
            found["less_length_by_regression"] = [float(difference.mean()), *paired_interval(difference, prompts).to_list()]
        else:  # what RankingAccuracy measures by
            found = {key: value for key, value in found.items() if not key.startswith(("over_length", "length_"))}
        found["beats_chance"] = found["accuracy_interval"][0] > 0.5
        found["processor_seconds"] = time.process_time() - start
        results["methods"][name] = found
        print(
            name,
            found["processor_seconds"],
            f"{found['accuracy']:.3f}",
            found["accuracy_interval"],
            found.get("less_length_by_regression"),
            flush=True,
        )
    first, second = (f"reward_model_pretrained_backbone_{row}" for row in ("block", "causal"))
    if second in hits:
        difference = hits[second] - hits[first]
        results["causal_less_block"] = [float(difference.mean()), *paired_interval(difference, prompts).to_list()]
    command = (
        "python benchmarks/posttraining/real_preferences.py"
        + (" --run runs/laptop" if options.run else "")
        + " --causal" * options.causal
    )
    print(save(__file__, command, results))


if __name__ == "__main__":
    main()
