"""`herd import`: from Hugging Face's and Meta's folders, bit for bit where the types allow, and what is refused."""

import base64
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from herd.cli import main
from herd.interchange.export import ExportConfig
from herd.interchange.export import run as export
from herd.interchange.import_stage import STAGE, ImportConfig
from herd.model.config import RopeScaling
from herd.model.io import load_model, load_reward_model, read_weights, save_model
from herd.runs.stage import Artifact, execute


@pytest.fixture
def take(tmp_path):
    """Import a folder as the command does."""

    def take(source: Path, **changes: object) -> Artifact:
        return execute(STAGE, ImportConfig(source=str(source), **changes), {}, tmp_path / "imports", "run")

    return take


@pytest.fixture
def exported(run, tmp_path):
    export(ExportConfig(model=str(run / "pretrain"), out=str(tmp_path / "out")))
    return tmp_path / "out"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_an_export_comes_back_bit_for_bit(tmp_path, tokenizer, make_model, take, tied, shard_bytes):
    scaling = None if tied else RopeScaling(factor=3.0, low_freq_factor=1.5, high_freq_factor=5.0, original_max_seq_len=16)
    save_model(make_model(4, tie_embeddings=tied, rope_scaling=scaling, rope_theta=1234.5, norm_eps=1e-6), tmp_path / "model")
    tokenizer.save(tmp_path / "tokenizer")
    export(ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "out"), max_shard_bytes=shard_bytes))
    result = take(tmp_path / "out")
    assert bytes_of(result / "model") == bytes_of(tmp_path / "model")
    assert bytes_of(result / "tokenizer") == bytes_of(tmp_path / "tokenizer")


def test_a_reward_model_comes_back_bit_for_bit(run, tmp_path, take):
    export(ExportConfig(model=str(run / "reward"), out=str(tmp_path / "out")))
    result = take(tmp_path / "out")
    assert bytes_of(result / "model") == bytes_of(run / "reward/model")
    assert result.metrics["kind"] == "reward"
    assert load_reward_model(result / "model").backbone.config.tie_embeddings


def test_types(run, exported, tmp_path, take):
    export(ExportConfig(model=str(run / "pretrain"), out=str(tmp_path / "bf16"), dtype="bf16"))
    wide, same = take(tmp_path / "bf16"), take(tmp_path / "bf16", dtype="keep")
    assert {t.dtype for t in read_weights(wide / "model").values()} == {torch.float32}
    assert {t.dtype for t in read_weights(same / "model").values()} == {torch.bfloat16}
    for name, tensor in read_weights(same / "model").items():
        assert torch.equal(tensor.float(), read_weights(wide / "model")[name])


def test_the_address_follows_the_content_and_not_the_place(exported, tmp_path, take):
    first = take(exported)
    moved = shutil.copytree(exported, tmp_path / "elsewhere")
    assert take(moved).path == first.path
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert take(moved).path != first.path


def test_what_transformers_saves_is_read(tmp_path, take):
    """A folder that no code of ours has written, of both classes' defaults, in shards."""
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0}
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=97, max_position_embeddings=512, rope_parameters=rope | {"original_max_position_embeddings": 64},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    ours = load_model(take(tmp_path / "theirs", tokenizer=False) / "model")
    tokens = torch.arange(97)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, rtol=0, atol=1e-5)


# Meta's layout


def meta_folder(folder: Path, model: object, ranks: int = 1, **params: object) -> Path:
    """``model`` as Meta releases one: the pieces that fairscale's column-, row- and vocabulary-parallel layers hold."""
    folder.mkdir(parents=True)
    config = model.config
    values = {"dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads}
    values |= {"vocab_size": config.vocab_size, "norm_eps": config.norm_eps, "rope_theta": config.rope_theta}
    values |= {"ffn_dim_multiplier": 1.3, "multiple_of": 1024, "use_scaled_rope": config.rope_scaling is not None} | params
    (folder / "params.json").write_text(json.dumps(values))
    for rank in range(ranks):
        state = {"rope.freqs": torch.zeros(4)}
        for name, weight in model.state_dict().items():
            if weight.dim() == 1:
                state[name] = weight.clone()
                continue
            dim = 1 if name.endswith(("wo.weight", "w2.weight")) else 0
            state[name] = weight.chunk(ranks, dim)[rank].clone()
        torch.save(state, folder / f"consolidated.{rank:02}.pth")
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_metas_layout(tmp_path, make_model, take, ranks):
    model = make_model(5, rope_scaling=RopeScaling(), max_seq_len=131_072)
    folder = meta_folder(tmp_path / "meta", model, ranks)
    result = take(folder, tokenizer=False)
    save_model(model, tmp_path / "model")
    assert bytes_of(result / "model") == bytes_of(tmp_path / "model")
    assert result.metrics["layout"] == "meta"


def test_metas_older_models_have_unscaled_rope_and_shorter_ones_can_be_asked_for(tmp_path, make_model, take):
    folder = meta_folder(tmp_path / "meta", make_model(6, rope_scaling=None))
    assert load_model(take(folder, tokenizer=False) / "model").config.max_seq_len == 8192
    config = load_model(take(folder, tokenizer=False, max_seq_len=64) / "model").config
    assert (config.max_seq_len, config.rope_scaling) == (64, None)
    scaled = meta_folder(tmp_path / "scaled", make_model(6))
    config = load_model(take(scaled, tokenizer=False, max_seq_len=64, rope_factor=32.0) / "model").config
    assert config.rope_scaling == RopeScaling(factor=32.0)


def test_metas_tokenizer_comes_along(tmp_path, make_model, take):
    folder = meta_folder(tmp_path / "meta", make_model(7, vocab_size=512, rope_scaling=None))
    lines = [f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256)]
    (folder / "tokenizer.model").write_text("\n".join(lines))
    result = take(folder)
    assert json.loads((result / "tokenizer/special_tokens.json").read_text())["<|begin_of_text|>"] == 256


class Bomb:
    def __reduce__(self):
        return (print, ("it ran",))


def damage(name: str, exported: Path, meta: Path) -> Path:
    """A folder with one fault."""
    config = json.loads((exported / "config.json").read_text())
    weights = load_file(exported / "model.safetensors")
    changes = {
        "another architecture": {"model_type": "qwen2"},
        "another class": {"architectures": ["LlamaForTokenClassification"]},
        "another rope": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        "biases": {"attention_bias": True},
        "quantised": {"quantization_config": {"quant_method": "fp8"}},
        "no size": {"hidden_size": None},
        "no number": {"hidden_size": "wide"},
        "wider": {"intermediate_size": 50},
        "small vocabulary": {"vocab_size": 300},
    }
    if name in changes:
        if name == "small vocabulary":
            weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:300].clone()
            save_file(weights, exported / "model.safetensors")
        (exported / "config.json").write_text(json.dumps(config | changes[name]))
        return exported
    if name == "biases in the weights":
        save_file(weights | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, exported / "model.safetensors")
    elif name == "a tensor more":
        save_file(weights | {"model.layers.2.mlp.up_proj.weight": torch.zeros(3, 3)}, exported / "model.safetensors")
    elif name == "a tensor less":
        save_file({k: v for k, v in weights.items() if k != "model.norm.weight"}, exported / "model.safetensors")
    elif name == "integers":
        save_file({k: v.to(torch.int8) for k, v in weights.items()}, exported / "model.safetensors")
    elif name == "truncated":
        (exported / "model.safetensors").write_bytes((exported / "model.safetensors").read_bytes()[:-50])
    elif name in ("missing shards", "index leaves the folder", "index without map"):
        (exported / "model.safetensors").unlink()
        file = "../../etc/passwd" if name == "index leaves the folder" else "model-00002-of-00003.safetensors"
        index = {} if name == "index without map" else {"weight_map": {"model.norm.weight": file}}
        (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    elif name == "pickled":
        (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    elif name == "no weights":
        (exported / "model.safetensors").unlink()
    elif name == "no json":
        (exported / "config.json").write_text("{")
    elif name == "no tokenizer":
        (exported / "tokenizer.json").unlink()
    elif name == "meta: a bomb":
        (meta / "consolidated.00.pth").write_bytes(pickle.dumps(Bomb()))
        return meta
    elif name == "meta: a bomb in a zip":
        torch.save({"norm.weight": Bomb()}, meta / "consolidated.00.pth")
        return meta
    elif name == "meta: truncated":
        (meta / "consolidated.01.pth").write_bytes((meta / "consolidated.01.pth").read_bytes()[:3000])
        return meta
    elif name == "meta: a rank lost":
        (meta / "consolidated.00.pth").unlink()
        return meta
    elif name == "meta: the last rank lost":
        (meta / "consolidated.01.pth").unlink()
        return meta
    elif name == "meta: llama 2":
        params = json.loads((meta / "params.json").read_text())
        del params["rope_theta"]
        (meta / "params.json").write_text(json.dumps(params))
        return meta
    elif name == "meta: a list":
        torch.save([torch.zeros(3)], meta / "consolidated.00.pth")
        return meta
    else:
        raise AssertionError(name)
    return exported


FAULTS = {
    "another architecture": "model_type is 'qwen2': only Llama",
    "another class": "architecture is LlamaForTokenClassification",
    "another rope": "rope_type is 'yarn'",
    "biases": "has biases",
    "quantised": "quantised",
    "no size": "has no hidden_size",
    "no number": "hidden_size = 'wide', which is no number",
    "wider": "down_proj.weight is (32, 48), expected (32, 50)",
    "small vocabulary": "tokenizer has 320 entries, the model's vocabulary 300",
    "biases in the weights": "has biases (model.layers.0.self_attn.q_proj.bias)",
    "a tensor more": "model.layers.2.mlp.up_proj.weight has no place",
    "a tensor less": "model.norm.weight is missing",
    "integers": "is of type I8",
    "truncated": "truncated or no safetensors file",
    "missing shards": "1 of 1 files with weights are missing (model-00002-of-00003.safetensors)",
    "index leaves the folder": "names a file outside its folder",
    "index without map": "has no weight_map",
    "pickled": "as pickles",
    "no weights": "has neither model.safetensors nor",
    "no json": "is not JSON",
    "no tokenizer": "tokenizer=false",
    "meta: a bomb": "is truncated or no zip file",
    "meta: a bomb in a zip": "something else than tensors, or is damaged: it was not loaded",
    "meta: truncated": "is truncated or no zip file",
    "meta: a rank lost": "has no consolidated.00.pth",
    "meta: the last rank lost": "1 files were found: is one missing?",
    "meta: llama 2": "has no rope_theta",
    "meta: a list": "something else than named tensors",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_in_one_line_and_leave_nothing(exported, tmp_path, make_model, capsys, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    source = damage(fault, exported, meta_folder(tmp_path / "meta", make_model(8), ranks=2))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["import", f"source={source}"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert FAULTS[fault] in err
    assert len(err.splitlines()) == 1
    assert "it ran" not in out
    assert not list(tmp_path.glob("runs/store/import-*"))


def test_no_such_folder_and_a_folder_of_ours(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source, message in (
        ("nowhere", "is no folder"),
        ("runs", "has neither config.json"),
        (run / "pretrain/model", "already"),
    ):
        with pytest.raises(SystemExit):
            main(["import", f"source={source}"])
        assert message in capsys.readouterr().err
