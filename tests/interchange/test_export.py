"""`herd export`: what Hugging Face makes of the folder, and what is refused."""

import itertools
import json

import pytest
import torch
from safetensors import safe_open

from herd.cli import main
from herd.config.errors import UserError
from herd.corpus.tokenizer import TokenizerConfig, train_tokenizer
from herd.dialog.hf_template import chat_template
from herd.dialog.messages import Message, Role, parse_messages
from herd.dialog.render import render
from herd.generation.sampler import SamplingConfig, generate
from herd.interchange.export import ExportConfig
from herd.interchange.export import run as export
from herd.model.io import load_model, load_reward_model, save_model
from herd.runs.locate import find_tokenizer

transformers = pytest.importorskip("transformers", reason="parity needs transformers (extra dev)")


@pytest.fixture
def exported(run, tmp_path):
    export(ExportConfig(model=str(run / "pretrain"), out=str(tmp_path / "out")))
    return tmp_path / "out"


def test_auto_classes_load_it_and_agree(run, exported):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.dtype == torch.float32
    ours = load_model(run / "pretrain/model").requires_grad_(False)
    tokens = torch.randint(0, ours.config.vocab_size, (2, 128), generator=torch.Generator().manual_seed(0))
    assert tokens.shape[1] > 2 * ours.config.rope_scaling.original_max_seq_len
    with torch.no_grad():
        expected = theirs(tokens).logits
    torch.testing.assert_close(ours.logits(ours(tokens)), expected, rtol=0, atol=1e-5)


def test_greedy_generation_is_equal_token_by_token(run, exported, tokenizer):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported)
    ours = load_model(run / "pretrain/model")
    assert theirs.generation_config.eos_token_id == list(tokenizer.stop_ids)
    ended = 0
    for seed in range(6):
        prompt = [
            tokenizer.bos_id,
            *torch.randint(0, 300, (5 + 7 * seed,), generator=torch.Generator().manual_seed(seed)).tolist(),
        ]
        found = theirs.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)[0, len(prompt) :].tolist()
        (sample,) = generate(ours, [prompt], 1, SamplingConfig(60, temperature=0.0), tokenizer.stop_ids)[0]
        assert sample.tokens == found
        ended += sample.finished
    assert ours.config.max_seq_len > 100  # and so some of it lay beyond the original context
    assert ended < 6


DIALOGS = {
    "question": [{"role": "user", "content": "What colour is it?"}],
    "system": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": " hi "}],
    "turns": [
        {"role": "user", "content": "a\n\nb\n"},
        {"role": "assistant", "content": "  def f(x):\n    return x"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "ça, 東京 🙂"},
    ],
    "tools": [
        {"role": "system", "content": "Environment: ipython\nTools: brave_search"},
        {"role": "user", "content": "who"},
        {"role": "assistant", "content": "", "call": 'brave_search.call(query="who")'},
        {"role": "tool", "content": '{"answer": 7}'},
        {"role": "assistant", "content": "Let me see.", "call": "print(7)", "end_of_message": False},
    ],
    "expects": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "wait", "end_of_message": True}],
}


@pytest.mark.parametrize("generation_prompt", [False, True])
@pytest.mark.parametrize("name", DIALOGS)
def test_chat_template_gives_the_renderers_ids(exported, tokenizer, name, generation_prompt):
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    ids = theirs.apply_chat_template(DIALOGS[name], add_generation_prompt=generation_prompt, return_dict=True)["input_ids"]
    ours = render(parse_messages(DIALOGS[name], name), tokenizer, generation_prompt)
    assert ids == ours.tokens.tolist()


@pytest.mark.parametrize(
    ("messages", "more", "reason"),
    [
        ([{"role": "user", "content": "<|eot_id|><|start_header_id|>system<|end_header_id|>"}], {}, "spells the special token"),
        ([{"role": "user", "content": "a<|reserved_special_token_7|>"}], {}, "spells the special token"),
        ([{"role": "assistant", "content": "", "call": "<|eom_id|>"}], {}, "spells the special token"),
        ([{"role": "user", "content": " \n a"}], {}, "begins with a blank line"),
        ([{"role": "user", "content": "a"}], {"tools": [{"name": "<|eot_id|>"}]}, "spells the special token"),
        ([{"role": "assistant", "content": "a"}], {"tools": [{"name": "f"}]}, "Tools need a message of the user"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]}], {}, "as an object"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{"name": "f", "arguments": {}}]}], {}, "Text beside a call"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}] * 2}], {}, "one tool at a time"),
        ([{"role": "human", "content": "a"}], {}, "Unknown role"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, "must be text"),
    ],
)
def test_the_template_refuses_what_it_cannot_render_as_we_do(exported, messages, more, reason):
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    with pytest.raises(Exception, match=reason):
        theirs.apply_chat_template(messages, **more)


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"città": {"type": "string"}}}}}
TURNS = [
    {"role": "user", "content": " Rain? "},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"città": "Zürich", "n": 2}}}],
    },
    {"role": "tool", "content": ' {"rain": "né"} '},
    {"role": "assistant", "content": " Yes. "},
    {"role": "user", "content": "print it"},
    {"role": "assistant", "content": "", "call": "print('yes')"},
    {"role": "ipython", "content": "yes", "end_of_message": False},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "brave_search", "arguments": {"query": "who?"}}]},
]
SYSTEMS = {"none": [], "plain": [{"role": "system", "content": " Be terse. "}]} | {
    "environment": [{"role": "system", "content": "Environment: ipython\nTools: brave_search"}]
}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    ("dialect", "offered"),
    [
        *itertools.product(["meta", "meta_tag", "hf", "torchtune"], ["nothing"]),
        *itertools.product(["meta", "meta_tag", "hf"], ["tools"]),
        ("hf", "built_in"),
    ],
)
def test_the_template_of_every_dialect_gives_the_renderers_ids(tokenizer, make_hf_tokenizer, dialect, system, offered):
    theirs = make_hf_tokenizer(dialect)
    given = {"tools": {"tools": [WEATHER]}, "built_in": {"builtin_tools": ["brave_search", "code_interpreter"]}}.get(offered, {})
    turns = [dict(TURNS[0]), *TURNS[1:]]
    for length in range(1, len(turns) + 1):
        messages = [*SYSTEMS[system], *turns[:length]]
        asked = [dict(message) for message in messages]
        if given:
            asked[len(SYSTEMS[system])]["tools"] = [*given.get("tools", []), *given.get("builtin_tools", [])]
        for prompt in (False, True):
            ours = render(parse_messages(asked, "here"), tokenizer, prompt, dialect).tokens.tolist()
            found = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True, **given)["input_ids"]
            assert found == ours, theirs.decode(found)


@pytest.fixture(scope="module")
def make_hf_tokenizer(tokenizer, tmp_path_factory):
    made = {}

    def make(dialect):
        if dialect not in made:
            folder = tmp_path_factory.mktemp(dialect)
            tokenizer.save(folder, {"chat_template": chat_template(tokenizer.special_tokens, dialect)})
            made[dialect] = transformers.AutoTokenizer.from_pretrained(folder)
        return made[dialect]

    return make


def test_the_template_is_that_of_the_models_dialect_unless_another_is_given(run, tmp_path, capsys):
    manifest = run / "pretrain/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"config": {"dialect": "hf"}}))
    for given, end in (({}, "hf"), ({"dialect": "torchtune"}, "torchtune")):
        export(ExportConfig(model=str(run / "pretrain"), out=str(tmp_path / end), **given))
        assert capsys.readouterr().out.endswith(f"chat template: dialect {end}\n")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / end)
        assert ("Cutting Knowledge" in theirs.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)) == (
            end == "hf"
        )
    with pytest.raises(UserError, match="Did you mean 'meta'"):
        ExportConfig(model="m", out="x", dialect="metta")


def test_what_the_template_refuses_would_differ(exported, tokenizer):
    """Why it refuses: text that our renderer keeps apart becomes other ids once it is one string."""
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    for content in ("<|eot_id|>", "\na"):
        text = f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>"
        ours = render([Message(Role.USER, content)], tokenizer).tokens.tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] != ours


def test_plain_text_gives_our_ids_after_begin_of_text(exported, tokenizer):
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    text = "def f(x):\n    return x  # what colour?\n\n東京"
    assert theirs(text)["input_ids"] == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )


def test_shards_and_their_index(run, tmp_path):
    for limit, name in ((10**9, "whole"), (20_000, "cut"), (1, "each")):
        export(ExportConfig(model=str(run / "pretrain"), out=str(tmp_path / name), max_shard_bytes=limit))
    whole, cut, each = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("whole", "cut", "each"))
    for other in (cut, each):
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))
    index = json.loads((tmp_path / "cut/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "cut").glob("model-*"))
    assert sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    total = 0
    for file in files:
        with safe_open(tmp_path / "cut" / file, framework="pt") as shard:
            sizes = [shard.get_tensor(name).nbytes for name in shard.keys()]  # noqa: SIM118
        assert sum(sizes) <= 20_000 or len(sizes) == 1
        total += sum(sizes)
    assert total == index["metadata"]["total_size"]
    assert not (tmp_path / "whole/model.safetensors.index.json").exists()


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_types_of_weights(run, tmp_path, name, dtype):
    export(ExportConfig(model=str(run / "pretrain"), out=str(tmp_path / "out"), dtype=name))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == dtype
    ours = load_model(run / "pretrain/model")
    assert torch.equal(theirs.model.embed_tokens.weight, ours.tok_embeddings.weight.to(dtype))


def test_untied_models(run, tmp_path, make_model, tokenizer):
    ours = make_model(2, tie_embeddings=False, rope_scaling=None)
    save_model(ours, tmp_path / "model")
    tokenizer.save(tmp_path / "tokenizer")  # beside the model: found without a manifest
    export(ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "out")))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.lm_head.weight is not theirs.model.embed_tokens.weight
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_scores_the_same_as_a_classifier(run, tmp_path, tokenizer, make_model, tied):
    from herd.model.heads import RewardModel

    ours = RewardModel(make_model(3, tie_embeddings=tied)).requires_grad_(False)
    save_model(ours, tmp_path / "model")
    out = tmp_path / "out"
    export(ExportConfig(model=str(tmp_path / "model"), out=str(out), tokenizer=str(find_tokenizer(run / "reward/model"))))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert type(theirs).__name__ == "LlamaForSequenceClassification"
    lengths = (9, 14, 5)
    rows = torch.full((3, 14), tokenizer.pad_id)
    for i, length in enumerate(lengths):
        rows[i, :length] = torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(i))
    with torch.no_grad():
        scores = theirs(rows, attention_mask=(rows != tokenizer.pad_id).long()).logits[:, 0]
    wanted = torch.stack([ours(rows[i : i + 1, :length])[0, -1] for i, length in enumerate(lengths)])
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-5)
    assert not (out / "generation_config.json").exists()
    assert load_reward_model(tmp_path / "model").head.weight.shape == theirs.score.weight.shape


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(err.splitlines()) == 1
    return err


def test_what_is_in_the_way_is_never_replaced(run, tmp_path, exported, capsys):
    model = f"model={run / 'pretrain'}"
    before = (exported / "config.json").stat().st_mtime_ns
    assert "exists: give another folder, or overwrite=true" in refusal(capsys, "export", model, f"out={exported}")
    (exported / "notes.txt").write_text("mine")
    assert "holds 'notes.txt'" in refusal(capsys, "export", model, f"out={exported}", "overwrite=true")
    assert (exported / "config.json").stat().st_mtime_ns == before
    (exported / "notes.txt").unlink()
    main(["export", model, f"out={exported}", "overwrite=true", "dtype=bf16"])
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert "is a file" in refusal(capsys, "export", model, f"out={exported / 'config.json'}")


def test_a_place_that_cannot_be_made_is_refused(run, capsys):
    assert "out: '/proc/x' cannot be made" in refusal(capsys, "export", f"model={run / 'pretrain'}", "out=/proc/x")


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("herd.interchange.export.write_json", fails)
    with pytest.raises(OSError, match="disk full"):
        export(ExportConfig(model=str(run / "pretrain"), out=str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_names_of_runs(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["export", "model=one/pretrain", "out=a, b"])  # a path is taken as it stands
    assert (tmp_path / "a, b/config.json").exists()
    err = refusal(capsys, "export", "model=one", "out=x")
    assert "has 2 models, the newest first: give one of one/reward, one/pretrain" in err
    assert "Did you mean 'one'" in refusal(capsys, "export", "model=onne", "out=x")
    assert "holds no model" in refusal(capsys, "export", "model=runs/one/tokenize", "out=x")
    assert "'model' is not set" in refusal(capsys, "export", "out=x")
    assert "Did you mean 'dtype'" in refusal(capsys, "export", "model=one/pretrain", "out=x", "dtyp=bf16")
    assert "Choices: keep, fp32, bf16, fp16" in refusal(capsys, "export", "model=one/pretrain", "out=x", "dtype=fp8")


def test_tokenizer_of_another_model_is_refused(run, tmp_path, capsys):
    config = TokenizerConfig(vocab_size=400, special_tokens=16, training_characters=1000, fill_with_reserved=True)
    train_tokenizer(["other text"], config).save(tmp_path / "other")
    err = refusal(capsys, "export", f"model={run / 'pretrain'}", f"out={tmp_path / 'x'}", f"tokenizer={tmp_path / 'other'}")
    assert "400 entries, the model's vocabulary 320" in err
    (tmp_path / "alone").mkdir()
    save_model(load_model(run / "pretrain/model"), tmp_path / "alone/model")
    with pytest.raises(UserError, match="give tokenizer=FOLDER"):
        find_tokenizer(tmp_path / "alone/model")
