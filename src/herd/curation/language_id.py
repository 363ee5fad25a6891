"""Which language is a text in? Without a download: script first, then byte n-grams, then words that tell neighbours apart.

1. The script of the letters leaves few languages (a Thai letter leaves one), which costs microseconds and cannot be fooled
   by a word of English in a page of Russian.
2. Among those that are left, ``py3langid`` decides: naive Bayes over byte n-grams, its model (4.6 MB, no pickle) inside
   its wheel. Its authors trained it on Wikipedia, Leipzig news, CommonCrawl and Tatoeba sentences.
3. Where its two best are close neighbours (Indonesian and Malay, Hindi and Nepali), common words that only one of them
   writes so are counted. The lists are short, made from grammars and spelling rules, and fitted to no text.

Languages are named by ISO 639-1, or by ISO 639-3 where there is no two-letter code. Members of a macrolanguage are folded
into it (Egyptian Arabic is ``ar``, Cantonese ``zh``, Nynorsk ``no``).
"""

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from herd.config.errors import UserError
from herd.curation.text import word_set

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNDETERMINED = "und"  # ISO 639-3: no letters, or nothing that any language claims
NOT_LANGUAGE = "zxx"  # ISO 639-3: numbers, identifiers, markup

SAMPLE = 600  # characters that are looked at: three pieces of a longer text, from its beginning, middle and end
_MIN_LETTERS = 3
_KANA_SHARE = 0.05  # of Han and Kana together; Chinese has none, a Japanese text of 100 characters next to never less
_WORD_WEIGHT = 2.0  # nats for each telling word that one neighbour has more than the other

# Script (first word of its letters' Unicode names) -> languages that the identifier knows in it. Where that is one language,
# its unknown neighbours (Yiddish, Tigrinya, Shan) are taken for it; scripts missing here (Tibetan, Cherokee) are `und`.
_SCRIPTS: dict[str, frozenset[str]] = {
    name: word_set(languages)
    for name, languages in {
        "ARABIC": "ar fa ku ps ug ur uz az",
        "ARMENIAN": "hy",
        "BENGALI": "as bn",
        "CYRILLIC": "ba be bg kk ky mk mn ru sr tg tt uk uz",
        "DEVANAGARI": "gom hi mr ne sa",
        "ETHIOPIC": "am",
        "GEORGIAN": "ka",
        "GREEK": "el grc",
        "GUJARATI": "gu",
        "GURMUKHI": "pa",
        "HAN": "zh",
        "HANGUL": "ko",
        "HEBREW": "he",
        "KANA": "ja",
        "KANNADA": "kn",
        "KHMER": "km",
        "LAO": "lo",
        "MALAYALAM": "ml",
        "MYANMAR": "my",
        "ORIYA": "or",
        "SINHALA": "si",
        "TAMIL": "ta",
        "TELUGU": "te",
        "THAI": "th",
    }.items()
}
_LATIN = word_set(
    "ace af an az bcl br bs ca crh cs cy da de en eo es et eu ext ff fi fo fr fy ga gcf gcr gd gl gn guw ha hr ht hu id ig is "
    "it jv kab ki ku la lb lg lij ln lt ltg lv mg ms mt nl no nso oc om pcm pl pt qu ro rw se sk sl sn so sq sr st sv sw tk "
    "tl tr uz vec vi vo wa xh yo zu zxx"
)
# The library's labels -> ours. All others are the same.
_FOLDED = {
    "ary": "ar",
    "arz": "ar",
    "fuv": "ff",
    "gug": "gn",
    "hbo": "he",
    "kik": "ki",
    "nn": "no",
    "sdh": "ku",
    "uzs": "uz",
    "wuu": "zh",
    "yue": "zh",
}

# Words that one language of a group of neighbours writes and the others do not, from spelling and grammar.
_TELLING: tuple[dict[str, frozenset[str]], ...] = tuple(
    {language: word_set(listed) for language, listed in group.items()}
    for group in (
        {
            "id": "agustus anggota apakah bahwa beda berbeda bisa desember diri hanya hewan hukum informasi jika kantor karena "
            "kawin kekuatan kemudian kerja kesehatan kesempatan kota maka maret masalah mereka nomor pekerjaan penelitian "
            "perkawinan perlindungan perusahaan polisi presiden propinsi provinsi rakyat saat sedang sebuah secara senin "
            "seorang setiap siswa swasta tahun tanpa tentang universitas warga",
            "ms": "ahad ahli awam bahawa bandar berbeza berlainan boleh disember faedah haiwan hendaklah isnin kahwin kakitangan "
            "kampung kebajikan kepada kerajaan kerana kesihatan kesemua lelaki maklumat manakala mahkamah mesyuarat mestilah "
            "nombor ogos pejabat pelbagai perempuan perkahwinan polis projek sahaja sebarang sekiranya semasa seseorang "
            "setiausaha syarikat taraf tiada tiap universiti wang",
        },
        {
            "hi": "अपने और करने किसी की के गया जो जाता जाएगा तक था थी थे नहीं ने पर में यह लिए वह से हुआ है हैं होगा",
            "ne": "अनि अथवा आफ्नो उनी कुनै गरी गरेको गर्न गर्ने छ छन् छैन छैनन् तर पनि भएको भने भन्ने यस र रहेको रूपमा लागि लाई "
            "वा सबै हुन हुने हुनेछ हो",
            "mr": "असे असेल आणि आपल्या आहे आहेत करणे करण्याचा करण्यात किंवा केले झाले तसेच त्या त्याच्या नये नाही नाहीत प्रत्येकास "
            "म्हणून व सर्व हा ही होते",
            "sa": "अपि अस्ति इति एव एवं च तत् तथा तु तेन न भवति यत् यदि वा सन्ति सर्वे स्यात्",
        },
    )
)
_WORDS = re.compile(r"[^\W\d_][\w\u0900-\u0963]*")  # with the vowel signs of Devanagari, which are no \w
_ADDRESSES = re.compile(r"\b(?:https?://|www\.)\S+|(?<!\S)\S[^\s@]*+@\S[^\s.]*+\.\S+")

# ISO 639-1 -> ISO 639-3 of every language that is claimed and has a two-letter code.
_ISO_639_3 = dict(
    pair.split(":")
    for pair in word_set(
        "af:afr am:amh an:arg ar:ara as:asm az:aze ba:bak be:bel bg:bul bn:ben br:bre bs:bos ca:cat cs:ces cy:cym da:dan de:deu "
        "el:ell en:eng eo:epo es:spa et:est eu:eus fa:fas ff:ful fi:fin fo:fao fr:fra fy:fry ga:gle gd:gla gl:glg gn:grn "
        "gu:guj ha:hau he:heb hi:hin hr:hrv ht:hat hu:hun hy:hye id:ind ig:ibo is:isl it:ita ja:jpn jv:jav ka:kat ki:kik kk:kaz "
        "km:khm kn:kan ko:kor ku:kur ky:kir la:lat lb:ltz lg:lug ln:lin lo:lao lt:lit lv:lav mg:mlg mk:mkd ml:mal mn:mon mr:mar "
        "ms:msa mt:mlt my:mya ne:nep nl:nld no:nor oc:oci om:orm or:ori pa:pan pl:pol ps:pus pt:por qu:que ro:ron ru:rus rw:kin "
        "sa:san se:sme si:sin sk:slk sl:slv sn:sna so:som sq:sqi sr:srp st:sot sv:swe sw:swa ta:tam te:tel tg:tgk th:tha tk:tuk "
        "tl:tgl tr:tur tt:tat ug:uig uk:ukr ur:urd uz:uzb vi:vie vo:vol wa:wln xh:xho yo:yor zh:zho zu:zul"
    )
)
# Claimed languages without a two-letter code, and members of macrolanguages that texts are labelled with.
_MEMBERS = {"arb": "ar", "cmn": "zh", "ekk": "et", "lvs": "lv", "nob": "no", "nno": "no", "pes": "fa", "swh": "sw", "zsm": "ms"}
_THREE = word_set("ace bcl crh ext gcf gcr gom grc guw kab lij ltg nso pcm vec")

CLAIMED: frozenset[str] = frozenset(_ISO_639_3) | _THREE
"""Languages that the identifier claims to know."""


class Identified(NamedTuple):
    """An answer."""

    language: str  # ISO 639-1, or 639-3 where that has none; `und` or `zxx` when there is no language to name
    probability: float  # of this language among those that are claimed and written in this script


@dataclass(frozen=True)
class LanguageConfig:
    """When the language that a source declares is replaced by the one that is found."""

    enabled: bool = True
    # Below it the declared language stays. The probabilities are close to calibrated at 100 characters and too low for
    # whole documents (benchmarks/curation/language_id.py), so 0.5 is a cautious value.
    min_probability: float = 0.5
    min_characters: int = 50  # shorter texts keep the declared language

    def __post_init__(self) -> None:
        if not 0 <= self.min_probability <= 1 or self.min_characters < 0:
            raise UserError("language: min_probability must lie in [0, 1] and min_characters be 0 or more.")

    def choose(self, text: str, declared: str) -> Identified:
        """The found language where it is sure enough, else the declared one with the probability that was found."""
        if not self.enabled or len(text) < self.min_characters:
            return Identified(declared, 1.0)
        found = identify(text)
        if found.language in (UNDETERMINED, NOT_LANGUAGE) or found.probability < self.min_probability:
            return Identified(declared, found.probability)
        return found


def identify(text: str, among: Collection[str] | None = None) -> Identified:
    """The language of a text, and its probability.

    A pure function, the same in every process. Of a long text three pieces are read (:data:`SAMPLE`).

    Args:
        text: any string, also one with control characters or lone surrogates.
        among: only these languages are possible (a subset of :data:`CLAIMED`); None = all that are claimed.

    Raises:
        UserError: ``among`` names a language that is not claimed, or the library is missing.
    """
    if among is not None and (unknown := sorted(set(among) - CLAIMED)):
        raise UserError(f"language identification does not know {', '.join(unknown)}: see herd.curation.language_id.CLAIMED.")
    sampled = sample(text)
    script, share = main_script(sampled)
    if script == "":
        return Identified(UNDETERMINED, 0.0)
    possible = _LATIN if script == "LATIN" else _SCRIPTS.get(script, frozenset())
    if among is not None:
        possible = possible & frozenset(among)
    if not possible:
        return Identified(UNDETERMINED, 0.0)
    if len(possible) == 1:
        return Identified(next(iter(possible)), share)
    ranked = _told_apart(_ranked(sampled, possible), sampled)
    # Equal probabilities: the first in the alphabet, on every machine.
    language, probability = min(ranked.items(), key=lambda item: (-item[1], item[0]))
    return Identified(language, probability)


def iso_639_3(language: str) -> str:
    """Three-letter code of a language that :func:`identify` may return (a macrolanguage's where it names one)."""
    return _ISO_639_3.get(language, language)


def from_iso_639_3(code: str) -> str:
    """What :func:`identify` calls the language with this three-letter code; the code itself when it knows no such one."""
    return _MEMBERS.get(code) or _TWO_LETTERS.get(code, code)


_TWO_LETTERS = {three: two for two, three in _ISO_639_3.items()}


def sample(text: str) -> str:
    """At most :data:`SAMPLE` characters, addresses left out: the whole text, or pieces of its beginning, middle and end.

    A page often begins with a menu and ends with a notice in another language than its text.
    """
    if len(text) > 2 * SAMPLE:
        piece, middle = SAMPLE // 3, (len(text) - SAMPLE // 3) // 2
        text = " ".join((text[:piece], text[middle : middle + piece], text[-piece:]))
    else:
        text = text[:SAMPLE]
    return _ADDRESSES.sub(" ", text)


def main_script(text: str) -> tuple[str, float]:
    """The script of most letters, as Unicode names it ("LATIN", "CJK"), and its share; ("", 0) without letters.

    Han with a little Kana is Japanese and counts as "KANA"; both count as one script when shares are compared.
    """
    counts = Counter(map(_SCRIPT_OF.__getitem__, text))
    counts.pop("", None)
    letters = sum(counts.values())
    if letters < _MIN_LETTERS:
        return "", 0.0
    kana = counts.pop("HIRAGANA", 0) + counts.pop("KATAKANA", 0)
    if kana:
        counts["CJK"] += kana
    script, count = max(counts.items(), key=lambda item: (item[1], item[0]))
    if script == "CJK":
        script = "KANA" if kana >= _KANA_SHARE * count else "HAN"
    return script, count / letters


class _ScriptOf(dict[str, str]):
    """Character -> script of a letter, "" for all else; remembered."""

    def __missing__(self, character: str) -> str:
        if len(self) > 200_000:
            self.clear()
        name = unicodedata.name(character, "") if character.isalpha() else ""
        script = self[character] = name.partition(" ")[0].partition("-")[0]
        return script


_SCRIPT_OF = _ScriptOf()


def _ranked(text: str, possible: frozenset[str]) -> dict[str, float]:
    """Language -> probability among the possible ones, by the library; macrolanguages are sums over their members."""
    found: dict[str, float] = {}
    for label, probability in _library().rank(text):
        language = _FOLDED.get(label, label)
        if language in possible:
            found[language] = found.get(language, 0.0) + float(probability)
    total = math.fsum(found.values())
    if not total > 0:  # all underflowed: the library is certain of a language of another script
        return dict.fromkeys(sorted(possible), 1 / len(possible))
    return {language: probability / total for language, probability in found.items()}


def _told_apart(ranked: dict[str, float], text: str) -> dict[str, float]:
    """Shift probability between close neighbours by the telling words of each, when the best guess is one of them."""
    best = max(ranked, key=lambda language: ranked[language], default="")
    for group in _TELLING:
        members = [language for language in group if language in ranked]
        if best not in group or len(members) < 2:
            continue
        words = set(_WORDS.findall(text.lower()))
        hits = {language: len(words & group[language]) for language in members}
        if not any(hits.values()):
            break
        most = max(hits.values())
        weights = {language: ranked[language] * math.exp(_WORD_WEIGHT * (hits[language] - most)) for language in members}
        share = math.fsum(ranked[language] for language in members) / (math.fsum(weights.values()) or 1.0)
        return ranked | {language: weight * share for language, weight in weights.items()}
    return ranked


@functools.cache
def _library() -> "LanguageIdentifier":
    """The model, loaded once a process (about a second)."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError("Language identification needs py3langid: pip install 'py3langid>=0.4,<0.5'.") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
