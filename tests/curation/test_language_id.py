"""Language identification: what it claims, on texts of its own and (where they are) on the reference languages."""

import json
import pickle
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.curation import language_id
from herd.curation.language_id import CLAIMED, LanguageConfig, from_iso_639_3, identify, iso_639_3, main_script, sample

pytest.importorskip("py3langid", reason="py3langid is not installed")

SENTENCES = {
    "en": "The weather was so bad yesterday that we stayed at home and read the old books again.",
    "de": "Gestern war das Wetter so schlecht, dass wir zu Hause geblieben sind und Bücher gelesen haben.",
    "fr": "Hier, il faisait si mauvais que nous sommes restés à la maison pour lire de vieux livres.",
    "it": "Ieri il tempo era così brutto che siamo rimasti a casa a leggere i vecchi libri.",
    "pt": "Ontem o tempo estava tão ruim que ficamos em casa e lemos os livros antigos outra vez.",
    "es": "Ayer hacía tan mal tiempo que nos quedamos en casa y leímos otra vez los libros viejos.",
    "hi": "कल मौसम इतना खराब था कि हम घर पर ही रहे और पुरानी किताबें फिर से पढ़ते रहे हैं।",
    "th": "เมื่อวานอากาศไม่ดีมาก เราจึงอยู่บ้านและอ่านหนังสือเก่าอีกครั้ง",
    "ru": "Вчера погода была такая плохая, что мы остались дома и снова читали старые книги.",
    "ja": "昨日は天気がとても悪かったので、家で古い本をもう一度読みました。",
    "zh": "昨天天气很不好，所以我们待在家里又读了一遍旧书。",
    "ko": "어제는 날씨가 너무 나빠서 집에서 오래된 책을 다시 읽었습니다.",
    "el": "Χθες ο καιρός ήταν τόσο κακός που μείναμε στο σπίτι και διαβάσαμε ξανά τα παλιά βιβλία.",
    "id": "Kemarin cuaca buruk karena itu kami bisa membaca buku tentang masalah kesehatan di kantor.",
    "ms": "Semalam cuaca buruk kerana itu kami boleh membaca buku mengenai masalah kesihatan di pejabat.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences(language: str) -> None:
    found = identify(SENTENCES[language])
    assert found.language == language
    assert 0.5 < found.probability <= 1


def test_every_language_named_anywhere_is_claimed() -> None:
    scripts = frozenset().union(language_id._LATIN, *language_id._SCRIPTS.values())
    assert scripts - {language_id.NOT_LANGUAGE} == CLAIMED
    assert {language for group in language_id._TELLING for language in group} <= CLAIMED


def test_every_claim_can_be_answered() -> None:
    """A claimed language is either alone in its script or one of the library's."""
    labels = {language_id._FOLDED.get(label, label) for label in language_id._library().labels}
    for script, languages in {"LATIN": language_id._LATIN, **language_id._SCRIPTS}.items():
        assert len(languages) == 1 or languages <= labels, (script, languages - labels)


def test_telling_words_tell() -> None:
    for group in language_id._TELLING:
        for language, words in group.items():
            others = frozenset().union(*(group[other] for other in group if other != language))
            # A word in two lists of one group cancels out between these two, and must not be in all.
            assert words - others, language


def test_codes() -> None:
    assert all(len(iso_639_3(language)) == 3 for language in CLAIMED)
    assert len({iso_639_3(language) for language in CLAIMED}) == len(CLAIMED)
    assert all(from_iso_639_3(iso_639_3(language)) == language for language in CLAIMED)
    assert [from_iso_639_3(code) for code in ("arb", "cmn", "pes", "swh", "deu")] == ["ar", "zh", "fa", "sw", "de"]
    assert from_iso_639_3("xyz") == "xyz"


@pytest.mark.parametrize("text", ["", "   \n", "12 345, 6.7 %", "a", "\x00\x01", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎠᎴ ᎤᏂᎩᏡ", "བོད་སྐད་ནི་བོད་ཀྱི་སྐད་ཡིན།"])
def test_nothing_to_identify(text: str) -> None:
    assert identify(text) == ("und", 0.0)


@given(st.text(max_size=300) | st.text(string.printable, max_size=300))
def test_any_string_has_an_answer(text: str) -> None:
    language, probability = identify(text)
    assert language in CLAIMED | {"und", "zxx"}
    assert 0 <= probability <= 1


def test_lone_surrogates() -> None:
    assert identify("\ud800" + SENTENCES["de"]).language == "de"


def test_script_comes_before_words() -> None:
    page = SENTENCES["ru"] + " Python, pandas, requests, Linux, Windows"
    assert identify(page).language == "ru"
    assert main_script("日本語のページ Python") == ("KANA", pytest.approx(7 / 13))
    assert main_script("漢字") == ("", 0.0)
    assert main_script("漢字漢字")[0] == "HAN"


def test_among() -> None:
    assert identify(SENTENCES["pt"], among={"es", "it"}).language in {"es", "it"}
    assert identify(SENTENCES["ru"], among={"es", "it"}) == ("und", 0.0)
    with pytest.raises(UserError, match="does not know qqq"):
        identify("text", among={"qqq"})


def test_sample_takes_three_places_and_drops_addresses() -> None:
    assert sample("short https://example.org/a?b=c end") == "short   end"
    text = "a" * 5000 + "b" * 5000 + "c" * 5000
    assert set(sample(text)) == {"a", "b", "c", " "}
    assert len(sample(text)) <= language_id.SAMPLE + 2
    menu = "Home Products News About Contact Login Search. " * 10
    assert identify(menu + SENTENCES["fr"] * 60 + "Copyright. All rights reserved.").language == "fr"


def test_declared_language_stays_unless_sure() -> None:
    config = LanguageConfig()
    assert config.choose(SENTENCES["de"], "en").language == "de"
    assert config.choose("Guten Tag", "en") == ("en", 1.0)  # too short
    assert config.choose("1 2 3 " * 20, "en").language == "en"
    assert LanguageConfig(enabled=False).choose(SENTENCES["de"], "en") == ("en", 1.0)
    with pytest.raises(UserError, match="min_probability"):
        LanguageConfig(min_probability=2)


def test_same_answer_in_another_process() -> None:
    code = (
        "import json, sys; from herd.curation.language_id import identify; "
        "print(json.dumps([identify(text) for text in json.load(sys.stdin)]))"
    )
    texts = list(SENTENCES.values())
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True)
    assert [tuple(item) for item in json.loads(done.stdout)] == [tuple(identify(text)) for text in texts]
    assert pickle.loads(pickle.dumps(identify)) is identify


def test_reference_languages(reference_data: Path) -> None:
    """Issue 3's row: at least 95% of 100-character snippets over the languages that are claimed."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "curation"))
    try:
        import language_id as benchmark
    finally:
        sys.path.pop(0)
    snippets = [s for i, s in enumerate(benchmark.read_snippets(reference_data, 100)) if i % 4 == 0]
    assert len({s.language for s in snippets}) == 36
    assert {s.language for s in snippets} <= CLAIMED
    right = [identify(s.text).language == s.language for s in snippets]
    assert sum(right) / len(right) >= 0.97, "measured 0.991"
