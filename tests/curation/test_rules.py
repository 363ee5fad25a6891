"""Deciding from measured statistics, and the presets."""

import functools
from importlib.resources import files

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.config.loader import compose, conf_root, load
from herd.curation.documents import DOMAINS
from herd.curation.extraction import extract_html
from herd.curation.kl import Reference, bucket_counts
from herd.curation.language_id import identify
from herd.curation.rules import RulesConfig, broken, edit_lines, first_broken, measure
from herd.curation.text import STOP_WORDS, tokenise
from herd.runs.seeds import stream


def decide(text: str, limits: dict[str, float | None], language: str = "en") -> tuple[str, float, float] | None:
    return first_broken(measure(text, language), language, limits)


def test_first_broken_rule_is_named_with_value_and_limit():
    limits = {"max_mean_word_length": 4.0, "min_words": 3.0}
    assert decide("one two", limits) == ("min_words", 2.0, 3.0)
    assert decide("elephants everywhere always", limits) == ("max_mean_word_length", 25 / 3, 4.0)
    assert decide("one two six", limits) is None
    assert decide("", {}) is None
    both = broken(measure("elephants everywhere", "en"), "en", limits)
    assert [rule for rule, _, _ in both] == ["min_words", "max_mean_word_length"]


def test_limits_are_inclusive_and_null_switches_off():
    assert decide("one two", {"min_words": 2, "max_words": 2}) is None
    assert decide("one two", {"max_words": 1}) == ("max_words", 2.0, 1.0)
    assert decide("one two", {"max_words": None}) is None


def test_english_stop_words_judge_english_only():
    text = "ein deutscher Satz ohne englische Wörter"
    assert decide(text, {"min_stop_words": 2, "min_stop_word_count": 2}, "de") is None
    assert decide(text, {"min_stop_words": 2}) == ("min_stop_words", 0.0, 2.0)


def test_decisions_need_the_scores_alone():
    scores = measure("the same few words and the same few words", "en")
    assert first_broken(dict(scores), "en", {"max_top_2gram": 0.2}) == ("max_top_2gram", scores["top_2gram"], 0.2)


def test_unknown_limits_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"rules\.general\.max_word'.*max_words"):
        RulesConfig(general={"max_word": 3})
    with pytest.raises(UserError, match=r"line_rules.*'c5'.*c4"):
        RulesConfig(line_rules="c5")


@functools.cache
def preset(name: str) -> RulesConfig:
    return load(RulesConfig, compose("curate", [f"rules={name}"]).rules)


PRESETS = sorted(p.stem for p in (conf_root() / "rules").glob("*.yaml") if p.stem != "other_domains")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_name_each_limit_once(name):
    rules = preset(name)
    assert all(getattr(rules, domain) for domain in DOMAINS)


def test_presets_hold_the_published_limits():
    gopher = preset("gopher").general
    assert [gopher[f"max_duplicate_{n}gram"] for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert [gopher[f"max_top_{n}gram"] for n in (2, 3, 4)] == [0.2, 0.18, 0.16]
    assert preset("fineweb").general["max_duplicate_line_characters_fineweb"] == 0.01
    assert preset("fineweb_paper").general["max_duplicate_line_characters_fineweb"] == 0.1
    assert preset("fineweb").line_rules == preset("fineweb_paper").line_rules == "c4_fineweb"
    assert (preset("c4").general["min_sentences"], preset("c4_dclm").general["min_sentences"]) == (5, 3)


def test_readings_of_one_limit_decide_differently():
    """A page that says everything twice: all of it is covered by repeated runs, half of it are repeats."""
    sentence = "A quiet morning came over the hills and every bird in the old wood began to sing at once"
    scores = measure(f"{sentence}\n{sentence}", "en")
    assert scores["duplicate_10gram"] == 1.0
    assert 0.2 < scores["duplicate_10gram_datatrove"] < 0.5
    assert first_broken(scores, "en", {"max_duplicate_10gram": 0.5}) is not None
    assert first_broken(scores, "en", {"max_duplicate_10gram_datatrove": 0.5}) is None


def verdict(text: str, rules: RulesConfig, language: str) -> str:
    """The rule that drops a document of prose, "" if none does."""
    domain = "general" if language == "en" else "multilingual"
    edit = edit_lines(text, language, rules.line_rules, rules.coverage, domain)
    if not edit.text:
        return "only_bad_lines"
    found = first_broken(measure(edit.text, language) | edit.scores, language, getattr(rules, domain))
    return found[0] if found else ""


def test_a_page_of_outlier_words_is_dropped_by_name():
    """Function words around names that the corpus does not have: nothing but the divergence sees it."""
    rng = stream(0, "outliers")

    def names(count: int) -> list[str]:
        parts = [list("bdfgklmnprst"), list("aeiou")] * 2
        return ["".join(rng.choice(part) for part in parts) for _ in range(count)]

    vocabulary = names(3_000)
    share = 1 / np.arange(10, 3_010)

    def page(content: list[str]) -> str:
        lines = [f"{' '.join(content[i : i + 9])} {rng.choice(STOP_WORDS)} {content[i]}." for i in range(0, len(content), 9)]
        return "\n".join(lines) + "\n"

    def usual() -> str:
        return page(rng.choice(vocabulary, 360, p=share / share.sum()).tolist())

    reference = Reference(sum(bucket_counts(tokenise(usual()).hashes, 65_536) for _ in range(600)))
    limits = preset("laptop").general
    assert first_broken(measure(usual(), "en", None, reference), "en", limits) is None
    odd = page([name + "x" for name in names(360)])
    rule, value, limit = first_broken(measure(odd, "en", None, reference), "en", limits)
    assert (rule, limit) == ("max_kl_excess", 3.5)
    assert value > 3.8


JAPANESE = """\
港の町では、朝が早い。漁船が戻ると、魚を選び分ける人たちが石段に集まり、値段を大きな声で知らせ合う。
昼になると通りは静かになり、猫だけが日なたで眠っている。子どもたちは学校から帰ると、堤防の先まで走って行き、沖を通る貨物船を数える。
夏の終わりには祭りがあり、どの家も提灯をともす。古い歌を知っている人は少なくなったが、太鼓の音は今でも山の向こうまで聞こえるという。
"""
CHINESE = """\
河边的小镇有一座石桥，桥上每天早晨都有人卖蔬菜和豆腐。老人坐在树下喝茶，谈论今年的雨水和庄稼。
学校就在山脚，孩子们沿着田埂走路上学，书包里装着课本和午饭。冬天下雪以后，山路很滑，大人便轮流送他们。
镇上的木匠姓林，他做的椅子没有一根钉子，却能用上几十年。许多城里人专门坐车来看他怎样选料、刨光和上漆。
"""
KOREAN = """\
강가의 작은 마을에는 오래된 다리가 하나 있다. 아침마다 사람들이 다리 위에서 채소와 두부를 판다.
아이들은 논둑을 따라 학교에 가고, 저녁이면 강에서 돌을 던지며 논다. 겨울에 눈이 오면 어른들이 번갈아 길을 쓴다.
마을의 목수는 못을 쓰지 않고 의자를 만드는데, 그 의자는 수십 년이 지나도 흔들리지 않는다고 한다.
"""


@pytest.mark.parametrize("name", PRESETS)
def test_prose_of_other_scripts_passes_every_preset(name):
    rules = preset(name)
    texts = [("ja", JAPANESE), ("zh", CHINESE), ("ko", KOREAN)]
    for language in ("de", "es", "fr", "hi", "it", "pt", "th"):
        sample = (files("herd.curation") / "multilingual" / f"{language}.txt").read_text("utf-8").split("%%")
        texts += [(language, "\n\n".join(sample)), *((language, part.strip() + "\n") for part in sample)]
    assert [(language, found) for language, text in texts if (found := verdict(text, rules, language))] == []


def test_a_page_that_says_everything_twice_is_dropped_in_any_script():
    rules = preset("laptop")
    for language, text in (("ja", JAPANESE), ("zh", CHINESE), ("ko", KOREAN)):
        twice = text + text.replace("\n", " ")  # lines differ, runs of words do not
        assert verdict(twice, rules, language).startswith("max_top_") or verdict(twice, rules, language) == "max_duplicate_5gram"


def test_every_language_of_a_real_text_passes_every_preset(reference_data, configure):
    """The Universal Declaration of Human Rights in 39 languages, whole and in pieces of 2,000 characters."""
    rules = {name: preset(name) for name in PRESETS}
    for own in rules.values():
        assert own.multilingual | {"max_kl_excess": 3.5} == rules["laptop"].multilingual
    pages = sorted((reference_data / "languages" / "udhr").glob("*.html"))
    assert len(pages) >= 39
    lost = {}
    for page in pages:
        text = extract_html(page.read_bytes(), configure().extraction)
        language = identify(text).language
        pieces = [text, *(text[i : i + 2000] for i in range(0, len(text) - 1000, 2000))]
        for name in ("laptop", *(("c4", "refinedweb") if language != "en" else ())):  # C4's own limits are for English
            found = [rule for piece in pieces if (rule := verdict(piece, rules[name], language))]
            if len(found) > 0.1 * len(pieces):
                lost[f"{name} {page.stem}"] = found
    assert lost == {}
