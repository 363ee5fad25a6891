"""`herd why`: one document explained, by id, beginning of an id, or URL."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from herd.cli import main
from herd.config.errors import UserError
from herd.curation.stage import STAGE
from herd.curation.why import explain
from herd.runs.seeds import stream
from herd.runs.stage import execute


def sentence(rng) -> str:
    words = ["".join(rng.choice(list(part)) for part in ("bdfgklmnprst", "aeiou", "bdfgklmnprst", "aeiou")) for _ in range(9)]
    return "The " + " ".join(words) + " of that.\n"


@pytest.fixture(scope="module")
def made(configure, tmp_path_factory):
    rng = stream(0, "why")
    folder = tmp_path_factory.mktemp("why")
    rows = [{"text": "".join(sentence(rng) for _ in range(20)), "url": f"https://s.org/{i}", "date": "2020"} for i in range(30)]
    for row in rows[:8]:
        row["text"] += "Sign in to read more\n"
    rows.append(rows[3] | {"url": "https://mirror.org/3", "date": "2010"})
    rows.append({"text": "Ask at the desk for more\n" * 9, "url": "https://s.org/echo", "date": ""})
    rows.append({"text": "too short\n", "url": "https://s.org/short", "date": ""})
    path = folder / "rows.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + b'{"text": "cut')
    settings = ["language.enabled=false", "classifier.enabled=false", "partitions=3", "workers=1", "kl.enabled=false"]
    settings += [f"rules.general.max_top_{n}gram=null" for n in (2, 3, 4)]
    config = configure("source=jsonl", f"source.path={path}", *settings)
    return execute(STAGE, config, {}, folder / "runs", "test")


def test_an_edited_document_shows_its_lines_and_scores(made):
    lines = explain("https://s.org/3", made.path)
    text = "\n".join(lines)
    assert lines[0].endswith("https://s.org/3")
    assert "edited   repeated_line: 1 (limit 6); lines 21 removed" in text
    assert "8 copies: Sign in to read more" in text
    assert "kept     train" in text or "kept     heldout" in text
    assert "words                            240" in text
    assert "at least 50 and at most 100000" in text
    identity = lines[0].split()[0]
    assert explain(identity[:10], made.path) == lines
    assert explain("http://www.s.org/3/#top", made.path) == lines  # the same address, written differently


def test_a_dropped_document_shows_why(made):
    copy = "\n".join(explain("https://mirror.org/3", made.path))
    assert "document   dropped  near_duplicate: 1 (limit 0.7)" in copy
    assert "https://s.org/3 (kept:" in copy
    assert "no scores: it went before it was measured" in copy
    short = "\n".join(explain("https://s.org/short", made.path))
    assert "quality    dropped  min_characters: 10 (limit 200)" in short
    assert "<- dropped for it" in short
    echo = "\n".join(explain("https://s.org/echo", made.path))
    assert "only_repeated_lines: 9 (limit 6); every line occurs more than 6 times in the documents of its language" in echo
    assert "not_json" in "\n".join(explain("rows.jsonl:34", made.path))


def test_unclear_and_unknown_names_are_refused(made):
    first = Counter(row["id"][0] for row in pq.read_table(made.path / "ledger").to_pylist() if row["action"] != "edited")
    with pytest.raises(UserError, match="documents have an id that begins with"):
        explain(next(digit for digit, count in sorted(first.items()) if count > 1 and digit in "0123456789abcdef"), made.path)
    for empty in ("", "  "):
        with pytest.raises(UserError, match="The name is empty"):
            explain(empty, made.path)
    with pytest.raises(UserError, match="No document of"):
        explain("https://nowhere.org/", made.path)


def test_command(made, capsys, monkeypatch, tmp_path):
    main(["why", "https://s.org/short", str(made.path)])
    assert "min_characters" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    for arguments, message in ((["why"], "takes an id or a URL"), (["why", "ab"], "there is none under runs/")):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
