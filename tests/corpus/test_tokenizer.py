"""The tokenizer: nothing lost, nothing forged, the same bytes each time, readable elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.corpus.special_tokens import NAMED, special_token_names
from herd.corpus.tokenizer import MAX_CHUNK, MAX_RUN, Tokenizer, TokenizerConfig, pieces_of, train_tokenizer

LLAMA_ORDER = (
    "begin_of_text",
    "end_of_text",
    "reserved_special_token_0",
    "reserved_special_token_1",
    "finetune_right_pad_id",
    "step_id",
    "start_header_id",
    "end_header_id",
    "eom_id",
    "eot_id",
    "python_tag",
    *(f"reserved_special_token_{i}" for i in range(2, 7)),
)
# Any text, and text made of what could trip a tokenizer: special tokens and their halves, blanks, contractions, marks.
PIECES = st.sampled_from(
    [
        *NAMED,
        "<|",
        "|>",
        "eot_id",
        " ",
        "\n",
        "\r\n",
        "\t",
        "'LL",
        "’s",
        "123456",
        "é",
        "é",
        "ไทย",
        "🙂‍🔥",
        "\x00",
        "\ufffd",
    ]
)
TEXT = st.text() | st.lists(PIECES | st.text(max_size=3)).map("".join)


@pytest.fixture(scope="module")
def without_specials(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    """The same merges, with no special token known at all."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer.save(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"], content["post_processor"] = [], None
    return tokenizers.Tokenizer.from_str(json.dumps(content))


@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts=st.lists(TEXT, max_size=4))
@settings(max_examples=150, deadline=None)
def test_text_never_becomes_a_special_token(
    tokenizer: Tokenizer, without_specials: tokenizers.Tokenizer, texts: list[str]
) -> None:
    batch = tokenizer.encode_batch(texts)
    assert batch == [tokenizer.encode(text) for text in texts]
    assert batch == [without_specials.encode(text, add_special_tokens=False).ids for text in texts]
    assert not {i for ids in batch for i in ids} & set(tokenizer.special_tokens.values())


def test_text_never_becomes_a_special_token_after_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = "a" + "".join(loaded.special_tokens) + "b"
    for ids in (loaded.encode(text), loaded.encode_batch([text, text])[1]):
        assert ids == tokenizer.encode(text)
        assert max(ids) < loaded.bos_id
        assert loaded.decode(ids) == text
    assert loaded.special_tokens == tokenizer.special_tokens
    assert json.loads((tmp_path / "special_tokens.json").read_text()) == tokenizer.special_tokens


def test_special_tokens_have_llama_names_and_order(tokenizer: Tokenizer) -> None:
    first = tokenizer.vocab_size - 16
    assert tokenizer.special_tokens == {f"<|{name}|>": first + i for i, name in enumerate(LLAMA_ORDER)}
    assert tokenizer.bos_id == first
    assert tokenizer.stop_ids == (first + 1, first + 8, first + 9)
    assert (tokenizer.pad_id, tokenizer.start_header_id, tokenizer.end_header_id) == (first + 4, first + 6, first + 7)
    assert tokenizer.python_tag_id == tokenizer.special("python_tag") == tokenizer.special("<|python_tag|>") == first + 10
    paper = special_token_names(256)
    assert len(set(paper)) == 256
    assert paper[-1] == "<|reserved_special_token_246|>"
    with pytest.raises(UserError, match=r"Did you mean '<\|eot_id\|>'"):
        tokenizer.special("<|eot_idd|>")


def test_special_ids_decode_by_name_or_are_left_out(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.eot_id]
    assert tokenizer.decode(ids) == "<|begin_of_text|>hi<|eot_id|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hi"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1234567 89", ["123", "456", "7", " ", "89"]),  # digits in threes; a number takes no blank
        ("I'll DON'T we're", ["I", "'ll", " DON", "'T", " we", "'re"]),
        ("    return x", ["   ", " return", " x"]),  # of several blanks the last belongs to the word
        ("a.b(c) != (d)\n\n  e", ["a", ".b", "(c", ")", " !=", " (", "d", ")\n\n", " ", " e"]),
        ("x \n \n\ty  ", ["x", " \n \n", "\ty", "  "]),
        ("naïve ไทย, 10€", ["naïve", " ไทย", ",", " ", "10", "€"]),
    ],
)
def test_words_are_split_as_llama_splits_them(tokenizer: Tokenizer, tmp_path: Path, text: str, words: list[str]) -> None:
    tokenizer.save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in spans] == words
    # Merges stay within words.
    assert tokenizer.encode(text) == [i for word in words for i in backend.encode(word, add_special_tokens=False).ids]


def test_token_bytes_count_utf8(tokenizer: Tokenizer) -> None:
    text = "naïve — ไทย 🙂 def f():\n    pass"
    ids = tokenizer.encode(text)
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert not tokenizer.token_bytes[list(tokenizer.special_tokens.values())].any()
    spelled = [tokenizer.bytes_of(token) for token in range(tokenizer.vocab_size)]
    assert [len(b or b"") for b in spelled] == tokenizer.token_bytes.tolist()
    assert b"".join(tokenizer.bytes_of(token) or b"" for token in ids) == text.encode()


def test_a_token_added_later_is_spelled_as_it_reads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens(["a b\n"])  # a blank and a line break are no letters of the byte-level alphabet
    added = Tokenizer(backend)
    assert added.bytes_of(tokenizer.vocab_size) == b"a b\n" == added.decode([tokenizer.vocab_size]).encode()


def test_training_gives_the_same_bytes_in_another_process(sources: list[str], tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=400, special_tokens=16, training_characters=200_000)
    train_tokenizer(sources, config).save(tmp_path / "here")
    (tmp_path / "texts.json").write_text(json.dumps(sources))
    script = (
        "import json, sys; from pathlib import Path; from herd.corpus.tokenizer import *\n"
        "texts = json.loads(Path(sys.argv[1], 'texts.json').read_text())\n"
        "train_tokenizer(texts, TokenizerConfig(400, 16, 200_000)).save(Path(sys.argv[1], 'there'))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    for name in ("tokenizer.json", "special_tokens.json", "tokenizer_config.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_training_stops_at_the_limit_and_ignores_what_lies_behind() -> None:
    words = "the cat sat on the mat and the dog sat on the log " * 40
    config = TokenizerConfig(vocab_size=300, special_tokens=16, training_characters=len(words), fill_with_reserved=True)
    short, long = train_tokenizer([words], config), train_tokenizer([words, "zyxwv " * 10_000], config)
    assert short.encode("the cat zyxwv") == long.encode("the cat zyxwv")


def test_size_is_exact_or_refused() -> None:
    texts = ["abab abab abab"]
    with pytest.raises(UserError, match=r"14 characters of text give only .* of tokenizer.vocab_size=2,048 entries"):
        train_tokenizer(texts, TokenizerConfig(2048, 16, 10_000))
    filled = train_tokenizer(texts, TokenizerConfig(2048, 16, 10_000, fill_with_reserved=True))
    assert filled.vocab_size == 2048
    assert len(filled.special_tokens) > 1_700
    assert list(filled.special_tokens)[:11] == list(NAMED)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], TokenizerConfig(2048, 16, 10_000))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 260}, "too small: 256 bytes and 16 special tokens need 272"),
        ({"special_tokens": 10}, "needs 11 or more"),
        ({"training_characters": 0}, "must be 1 or more"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, int], message: str) -> None:
    good = {"vocab_size": 2048, "special_tokens": 16, "training_characters": 1000}
    with pytest.raises(UserError, match=message):
        TokenizerConfig(**(good | values))


def test_bad_files_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No tokenizer at"):
        Tokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(tmp_path)
    whole = path.read_bytes()
    for content, message in [
        (whole[: len(whole) // 2], "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"{}", "not a file of the tokenizers library"),
        (whole.replace(b"<|eot_id|>", b"<|eot_xx|>"), r"no special token <\|eot_id\|>"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            Tokenizer.load(tmp_path)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="Text 1 of 2 holds half of a surrogate pair at character 2"):
        tokenizer.encode_batch(["fine", "ab\ud800"])


def llama_pieces(text: str, limit: int) -> list[str]:
    """Runs cut one character at a time: what llama-models' loop describes, for comparison."""
    pieces, start, run = [], 0, 0
    for i, character in enumerate(text):
        same = i > 0 and character.isspace() == text[i - 1].isspace()
        run = run + 1 if same else 1
        if run > limit:
            pieces.append(text[start:i])
            start, run = i, 1
    return [*pieces, text[start:]]


@pytest.mark.parametrize("run", [MAX_RUN - 1, MAX_RUN, MAX_RUN + 1, 2 * MAX_RUN, 3 * MAX_RUN + 7])
@pytest.mark.parametrize("kinds", ["a ", " a", "é\n", "=\u3000"])
def test_long_runs_are_cut_where_llama_cuts_them(run: int, kinds: str) -> None:
    text = kinds[0] * run + kinds[1] * run + kinds[0] * 3
    assert pieces_of(text) == llama_pieces(text, MAX_RUN)


def test_very_long_text_comes_back(tokenizer: Tokenizer) -> None:
    text = "word " * (MAX_CHUNK // 5) + " " * 60_000 + "x" * 60_000 + "end"
    assert [len(p) for p in pieces_of(text)][:1] == [MAX_CHUNK]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert pieces_of("") == []
    assert tokenizer.encode("") == []


def test_transformers_reads_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "def f(x): return x  # naïve 🙂\n"
    assert fast(text)["input_ids"] == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert fast.decode(tokenizer.encode(text)) == text
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    assert len(fast) == tokenizer.vocab_size
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert plain.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
