"""`herd distill-classifier`: documents labelled by a model of ours (or a file), a small encoder that learns the labels, scores.

Three kinds of labels: the probability that a chat model gives to each of some answers after a written description and the
document; the reward of the document as an answer to the description; a file. Labelling goes by chunks, scoring by files and
training by checkpoints, so an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from herd.alignment.choices import choice_probabilities, longest
from herd.alignment.fine_tuning import FineTuning, load_tokenizer, train
from herd.config.errors import UserError, nearest
from herd.corpus.tokenizer import Tokenizer
from herd.curation.classifiers.calibration import class_report, fit_calibration, softmax
from herd.curation.distill import Labelled, by_rank, choose_documents, divide, document_files, read_documents, read_labels
from herd.dialog.messages import Message, Role
from herd.dialog.render import render_batch
from herd.dialog.trained_in import require_dialect
from herd.model.config import ModelConfig
from herd.model.encoder import DocumentEncoder, save_encoder
from herd.model.io import load_model, load_reward_model
from herd.model.transformer import Transformer
from herd.runs.atomic import sha256_file, write_bytes, write_json
from herd.runs.progress import progress
from herd.runs.ranks import in_turn, place_among
from herd.runs.stage import Inputs, Stage, StageRun
from herd.runs.tables import TableWriter
from herd.training.encoder import EncoderModule, encoder_logits, encoder_sequences, encoder_steps
from herd.training.reward import score_responses
from herd.training.schedule import step_schedule
from herd.training.sequences import TrainingSequence
from herd.training.surroundings import require_devices
from herd.training.trainer_config import EXECUTION, TrainerConfig, processes_of

KINDS = ("model", "reward", "file")
_CHUNK = 64  # documents labelled between two saves
_MARGIN = 8  # tokens: a text that is cut and encoded again may be a little longer


@dataclass(frozen=True)
class LabelConfig:
    """Who says what documents are."""

    kind: str  # model (input judge), reward (input reward) or file
    path: str  # file: JSONL, see herd.curation.distill.read_labels
    description: str  # model, reward: what is asked; {text} marks the document's place, else it follows. reward: the prompt
    answers: dict[str, str]  # model: class -> the answer that stands for it
    positive: str  # of two classes the one whose probability is the score; "" = the last. reward: always `high`
    positive_share: float  # reward: share of the documents, those with the highest rewards, that is `high`
    documents: int  # model, reward: documents that are labelled
    batch_size: int  # sequences that the labelling model reads together

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"labels.kind '{self.kind}' is unknown.{nearest(self.kind, KINDS)} Choices: {', '.join(KINDS)}.")
        if self.kind == "file" and not self.path:
            raise UserError("labels.kind=file needs labels.path.")
        if self.kind == "model" and (len(self.answers) < 2 or not all(self.answers.values())):
            raise UserError(
                "labels.kind=model needs labels.answers: two classes or more, each with the answer that stands for it."
            )
        if not 0 < self.positive_share < 1 or self.documents < 10 or self.batch_size < 1:
            raise UserError("labels: positive_share in (0, 1), documents >= 10 and batch_size >= 1 are needed.")


@dataclass(frozen=True)
class DistillConfig(FineTuning):
    """Schema of conf/distill-classifier.yaml; `batch_size` counts documents, `window` is what is read of each."""

    labels: LabelConfig
    model: ModelConfig  # shape of the encoder, when no input `base` gives it
    calibration_share: float  # share of the labelled documents that calibrate
    heldout_share: float  # share that measures

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.heldout_share < 1 or not 0 <= self.calibration_share < 1 - self.heldout_share:
            raise UserError("distill-classifier: heldout_share > 0 and calibration_share must leave documents to train on.")


def run(config: DistillConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    require_dialect("distill-classifier", config.dialect, {name: inputs.get(name) for name in ("reward", "judge")})
    require_devices(config.trainer)  # before labels are made, rather than after
    tokenizer = load_tokenizer(inputs)
    documents = inputs.get("documents")
    folder = None if documents is None else documents / "documents"
    classes, labelled = _labels(config, inputs, tokenizer, folder, stage_run)
    training, calibration, heldout = divide(labelled, config.calibration_share, config.heldout_share, config.seed)
    encoder = DocumentEncoder(_backbone(config, inputs, tokenizer), classes, config.seed)
    config.check_window(encoder.backbone.config)

    def read(texts: Sequence[str]) -> list[TrainingSequence]:
        return encoder_sequences(texts, tokenizer, config.window)

    source = encoder_steps(
        read([item.text for item in training]),
        np.array([item.stated for item in training]),
        config.window,
        tokenizer.pad_id,
        config.batch_size,
        config.trainer.micro_batch_tokens,
        config.epochs,
        config.seed,
        config.trainer.processes,
    )
    schedule = step_schedule(config.schedule, config.optimizer.lr, len(source))
    module = EncoderModule(encoder, config.optimizer, schedule)
    result = train(module, source, config, encoder.backbone.config, stage_run)
    if not stage_run.writes:
        return {}  # the first process measures and scores
    encoder = module.model

    def logits(texts: Sequence[str]) -> np.ndarray:
        return encoder_logits(encoder, read(texts), tokenizer.pad_id, config.trainer.micro_batch_tokens)

    counts = np.bincount(_truth(labelled), minlength=len(classes))
    scale, shift = 1.0, np.zeros(0, np.float32)
    if calibration:
        found = logits([item.text for item in calibration])
        scale, shift = fit_calibration(found, _truth(calibration), counts / len(labelled))
    save_encoder(encoder, stage_run.folder / "encoder")
    calibrated = {"scale": scale, "shift": [float(s) for s in shift], "window": config.window}
    write_json(stage_run.folder / "encoder" / "calibration.json", calibrated)

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        return softmax(scale * logits(texts) + (shift if len(shift) else 0.0))

    report = class_report(_truth(heldout), probabilities([item.text for item in heldout]), classes)
    scored = _score(folder, probabilities, classes, stage_run.folder / "scores") if folder is not None else 0
    return {
        **report,
        "calibrated": bool(len(shift)),
        "labels": {name: int(counts[i]) for i, name in enumerate(classes)},
        "train_documents": len(training),
        "calibration_documents": len(calibration),
        "train_loss": result.last["loss"],
        "train_accuracy": result.last["accuracy"],
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "documents_scored": scored,
    }


def _truth(items: Sequence[Labelled]) -> np.ndarray:
    return np.array([int(np.argmax(item.stated)) for item in items], np.int64)


def _backbone(config: DistillConfig, inputs: Inputs, tokenizer: Tokenizer) -> Transformer:
    base = inputs.get("base")
    if base is not None:
        return load_model(base / "model")
    backbone = Transformer(config.model.with_vocab_size(tokenizer.vocab_size))
    backbone.init_weights(config.seed)
    return backbone


def _labels(
    config: DistillConfig, inputs: Inputs, tokenizer: Tokenizer, folder: Path | None, stage_run: StageRun
) -> tuple[tuple[str, ...], list[Labelled]]:
    """Classes, of two the positive one last, and labelled documents in order of ids."""
    labels = config.labels
    if labels.kind == "file":
        classes, found = read_labels(Path(labels.path), document_files(folder) if folder is not None else [])
        return _positive_last(classes, found, labels.positive)
    if folder is None:
        raise UserError(f"labels.kind={labels.kind} needs inputs.documents=FOLDER (what `herd curate` made).")
    chosen = choose_documents(document_files(folder, "train"), labels.documents, config.seed)
    if labels.kind == "reward":
        rewards = _by_chunks(chosen, _rewarder(config, inputs, tokenizer), config.trainer, stage_run, columns=1)
        stated = by_rank(rewards[:, 0].tolist(), labels.positive_share)
        names: tuple[str, ...] = ("low", "high")
    else:
        names = tuple(sorted(labels.answers, key=lambda name: (name == labels.positive, name)))
        judge = _judge(config, names, inputs, tokenizer)
        stated = _by_chunks(chosen, judge, config.trainer, stage_run, columns=len(names))
    _save_labels(stage_run.folder / "labels.parquet", chosen, stated, names)
    found = [Labelled(name, text, name, tuple(row)) for (name, text), row in zip(chosen, stated.tolist(), strict=True)]
    return names, found


def _positive_last(classes: tuple[str, ...], found: list[Labelled], positive: str) -> tuple[tuple[str, ...], list[Labelled]]:
    if positive and positive not in classes:
        raise UserError(f"labels.positive: '{positive}' is no class.{nearest(positive, classes)}")
    order = sorted(range(len(classes)), key=lambda i: (classes[i] == positive, i))
    moved = [Labelled(f.id, f.text, f.group, tuple(f.stated[i] for i in order)) for f in found]
    return tuple(classes[i] for i in order), sorted(moved, key=lambda item: (item.id, item.text))


Labeller = Callable[[list[str]], np.ndarray]  # texts -> (texts, columns)


def _by_chunks(
    chosen: Sequence[tuple[str, str]], label: Labeller, trainer: TrainerConfig, stage_run: StageRun, columns: int
) -> np.ndarray:
    """Label all documents; finished chunks lie in the scratch folder, where an interrupted run finds them and the processes of
    a run those of each other.
    """
    starts = range(0, len(chosen), _CHUNK)
    paths = [stage_run.scratch / f"labels-{first:09d}.f64" for first in starts]
    rank, _ = place_among(trainer.devices, trainer.nodes)
    with progress("labelling documents", len(chosen), "documents") as bar:
        for chunk in in_turn(len(paths), rank, trainer.processes):
            texts = [text for _, text in chosen[starts[chunk] : starts[chunk] + _CHUNK]]
            if not paths[chunk].exists():
                write_bytes(paths[chunk], np.ascontiguousarray(label(texts), np.float64).tobytes())
            bar.advance(len(texts))
    return np.concatenate([np.zeros(0), *(np.frombuffer(path.read_bytes()) for path in paths)]).reshape(len(chosen), columns)


def _judge(config: DistillConfig, names: Sequence[str], inputs: Inputs, tokenizer: Tokenizer) -> Labeller:
    """Probability of each class: that of its answer, summed over the answer's tokens, divided by the sum over answers."""
    labels, given = config.labels, inputs.get("judge")
    if given is None:
        raise UserError("labels.kind=model needs inputs.judge=FOLDER (a model that `herd sft`, dpo or pretrain made).")
    model = load_model(given / "model")
    answers = [labels.answers[name] for name in names]
    cut = _cutter(
        tokenizer, model.config.max_seq_len - longest(_asked(labels.description, ""), answers, tokenizer, config.dialect)
    )

    def label(texts: list[str]) -> np.ndarray:
        asked = [_asked(labels.description, cut(text)) for text in texts]
        return choice_probabilities(model, tokenizer, asked, answers, labels.batch_size, config.dialect)

    return label


def _rewarder(config: DistillConfig, inputs: Inputs, tokenizer: Tokenizer) -> Labeller:
    """Reward of the document as the answer to the description."""
    labels, given = config.labels, inputs.get("reward")
    if given is None:
        raise UserError("labels.kind=reward needs inputs.reward=FOLDER (what `herd reward` made).")
    model = load_reward_model(given / "model")
    prompt = Message(Role.USER, labels.description)
    empty = len(render_batch([(prompt, Message(Role.ASSISTANT, ""))], tokenizer, dialect=config.dialect)[0])
    cut = _cutter(tokenizer, model.backbone.config.max_seq_len - empty)

    def label(texts: list[str]) -> np.ndarray:
        rows = [(prompt, Message(Role.ASSISTANT, cut(text))) for text in texts]
        return np.array(score_responses(model, tokenizer, rows, labels.batch_size, config.dialect))[:, None]

    return label


def _asked(description: str, text: str) -> str:
    return description.replace("{text}", text) if "{text}" in description else f"{description}\n\n{text}"


def _cutter(tokenizer: Tokenizer, room: int) -> Callable[[str], str]:
    """text -> its beginning, at most so many tokens."""
    if room < 2 * _MARGIN:
        raise UserError("distill-classifier: description and answers leave no room for a document in the model's window.")

    def cut(text: str) -> str:
        ids = tokenizer.encode(text[: 64 * room])
        return text if len(ids) <= room - _MARGIN else tokenizer.decode(ids[: room - _MARGIN]).rstrip("\ufffd")

    return cut


def _save_labels(path: Path, chosen: Sequence[tuple[str, str]], stated: np.ndarray, names: Sequence[str]) -> None:
    import pyarrow as pa

    schema = pa.schema([("id", pa.string()), *((name, pa.float64()) for name in names)])
    rows = [{"id": i} | dict(zip(names, row, strict=True)) for (i, _), row in zip(chosen, stated.tolist(), strict=True)]
    with TableWriter(path, schema) as writer:
        writer.write_rows(rows)


def _score(folder: Path, probabilities: Callable[[Sequence[str]], np.ndarray], classes: Sequence[str], out: Path) -> int:
    """Scores of every document, one file for each file of documents: id, label, score. Returns how many.

    The score is the probability of the second of two classes; of more, that of the label.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("label", pa.string()), ("score", pa.float32())])
    files = document_files(folder)
    total = 0
    with progress("scoring documents", sum(pq.read_metadata(path).num_rows for path in files), "documents") as bar:
        for path in files:
            target = out / path.name
            if not target.exists():
                with TableWriter(target, schema) as writer:
                    for part in read_documents(path):
                        found = probabilities([text for _, text in part])
                        best = found.argmax(axis=1)
                        scores = found[:, 1] if len(classes) == 2 else found.max(axis=1)
                        writer.write_rows(
                            [
                                {"id": name, "label": classes[b], "score": s}
                                for (name, _), b, s in zip(part, best.tolist(), scores.tolist(), strict=True)
                            ]
                        )
                        bar.advance(len(part))
            total += pq.read_metadata(target).num_rows
    return total


def fingerprint(config: DistillConfig) -> dict[str, Any]:
    """Content of the user's file of labels."""
    path = Path(config.labels.path)
    return {"labels": sha256_file(path)} if config.labels.kind == "file" and path.is_file() else {}


STAGE = Stage(
    name="distill-classifier",
    version=1,
    config=DistillConfig,
    run=run,
    fingerprint=fingerprint,
    summary="labels of a model or a file to a small encoder that scores documents",
    inputs=("tokens",),
    optional=("documents", "base", "judge", "reward"),
    execution=EXECUTION,
    processes=processes_of,
)
