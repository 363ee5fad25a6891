"""A model as the folder that Hugging Face's classes load: configuration, and weights in one or several files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.model.convert import (
    CAUSAL_LM,
    CLASSIFIER,
    architecture_of,
    herd_config,
    hf_config,
    hf_names,
    tensor_from_hf,
    tensor_to_hf,
)
from herd.model.io import CONFIG_FILE, REWARD, TRANSFORMER, WEIGHTS_FILE, Checkpoint, check_shapes, expected_shapes
from herd.model.tensor_files import TensorFiles, write_tensors
from herd.runs.atomic import write_json

INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_UNUSED = ("rotary_emb.inv_freq",)  # a buffer that old versions saved; it follows from the configuration


def open_hf_folder(folder: Path) -> Checkpoint:
    """The model in a folder that ``LlamaForCausalLM`` or ``LlamaForSequenceClassification`` has saved; no weight is read yet.

    Raises:
        UserError: a file is missing or damaged; another architecture, biases, quantised weights, an unknown RoPE variant;
            weights that do not fit the configuration.
    """
    values = read_json(folder / CONFIG_FILE)
    if str(values.get("format", "")).startswith("herd."):
        raise UserError(f"{folder} is a model of herd's already: use it as it is.")
    try:
        architecture, config = architecture_of(values), herd_config(values)
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}") from error
    kind = REWARD if architecture == CLASSIFIER else TRANSFORMER
    files = TensorFiles(_weight_files(folder))
    names = hf_names(config, architecture)
    ours = expected_shapes(kind, config)
    unused = {name for name in files.specs if name.endswith(_UNUSED)}
    if config.tie_embeddings:
        unused.add("lm_head.weight")
    found = {name: spec for name, spec in files.specs.items() if name not in unused}
    biases = [name for name in found if name.endswith(".bias")]
    if biases:
        raise UserError(f"{folder} has biases ({biases[0]}); the Llama 3 architecture has none.")
    check_shapes({theirs: ours[name] for name, theirs in names.items()}, found, folder)
    return Checkpoint(
        kind,
        config,
        {name: files.specs[theirs] for name, theirs in names.items()},
        lambda name: tensor_from_hf(files.read(names[name]), name, config),
    )


def write_hf_folder(folder: Path, model: Checkpoint, max_shard_bytes: int, more: Mapping[str, Any]) -> list[str]:
    """Write ``config.json`` and the weights: one file, or numbered ones of at most ``max_shard_bytes`` and their index.

    Args:
        model: its weights keep their types, the type of the embedding becomes that of the configuration.
        max_shard_bytes: a larger single tensor gets a file of its own.
        more: further entries of ``config.json`` (ids of tokens).

    Returns:
        The names of the files with weights.
    """
    architecture = CLASSIFIER if model.kind == REWARD else CAUSAL_LM
    ours = {theirs: name for name, theirs in hf_names(model.config, architecture).items()}
    specs = {theirs: model.specs[name] for theirs, name in ours.items()}
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.bytes
    count = len(shards)
    files = [WEIGHTS_FILE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, names in zip(files, shards, strict=True):
        write_tensors(
            folder / file,
            {name: specs[name] for name in names},
            lambda name: tensor_to_hf(model.read(ours[name]), ours[name], model.config),
        )
    if count > 1:
        total = sum(spec.bytes for spec in specs.values())
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
    dtype = str(specs["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    # transformers 4 reads torch_dtype, transformers 5 dtype.
    types = {"torch_dtype": dtype, "dtype": dtype}
    write_json(folder / CONFIG_FILE, hf_config(model.config, architecture) | types | dict(more))
    return files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError when the file is missing or holds something else."""
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch or make it again.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({' '.join(str(error).split())[:200]}): fetch or make it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object: fetch or make it again.")
    return values


def _weight_files(folder: Path) -> list[Path]:
    """The files with weights, all there."""
    index = folder / INDEX_FILE
    if not index.is_file():
        if (folder / WEIGHTS_FILE).is_file():
            return [folder / WEIGHTS_FILE]
        if any((folder / name).exists() for name in _PICKLES):
            raise UserError(
                f"{folder} has its weights as pickles ({_PICKLES[0]}), which are not read: save it again with "
                "safe_serialization=True, or fetch the safetensors files."
            )
        raise UserError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}: fetch the weights.")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UserError(f"{index} has no weight_map: fetch it again.")
    names = sorted({str(name) for name in where.values()})
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index} names a file outside its folder: do not trust this checkpoint.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {len(missing)} of {len(names)} files with weights are missing ({missing[0]}): fetch them.")
    return [folder / name for name in names]
