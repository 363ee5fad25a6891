"""The page and summary.json of whole, partial and hostile runs."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from herd.config.errors import UserError
from herd.config.loader import compose
from herd.recipe.job import make_job
from herd.report import sections
from herd.report.claims import claims
from herd.report.figures_evaluation import _mark
from herd.report.run_data import RunData
from herd.report.sections import _best_and_all, all_sections
from herd.report.stage import STAGE, ReportConfig
from herd.report.summary import summarise
from herd.runs.stage import Artifact, execute

CONFIG = ReportConfig(seed=0, title="herd: <test>", notebook=None, chat_samples=4)


def report(stages: dict[str, Artifact], root: Path, config: ReportConfig = CONFIG) -> Artifact:
    return execute(STAGE, config, {"stages": {label: a.path for label, a in stages.items()}}, root, "report")


@pytest.fixture(scope="module")
def reported(whole: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return report(whole, tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """Collects what the page would load, its tags and its text; fails on unbalanced tags."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(html)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action") and v]
        self.scripts += tag == "script"
        if "id" in values:
            self.ids.append(str(values["id"]))
        if tag == "img":
            self.images.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_whole_run(reported: Artifact) -> None:
    page = Page((reported / "index.html").read_text(encoding="utf-8"))
    wanted = ["overview", "data", "scaling", "pretraining", "post-training", "evaluation", "dialogs", "cost", "provenance"]
    assert [i for i in page.ids if not i.startswith("figure-")] == wanted
    shown = ["funnel", "domains", "forecast", "pretraining", "baselines", "dpo", "multiple_choice", "bits_per_byte"]
    shown += ["preferences", "needle", "costs"]
    assert [i.removeprefix("figure-") for i in page.ids if i.startswith("figure-")] == shown
    assert sorted(p.stem for p in (reported / "figures").iterdir()) == sorted(shown)
    for number in ("4.250", "4.300", "[0.440, 0.580]", "80.0%", "60.0%", "[53.0, 67.0]%", "ties 7"):
        assert number in page.text, number


def test_nothing_is_loaded_from_elsewhere(reported: Artifact) -> None:
    html = (reported / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.images
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in page.loads)
    outside = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert "http" not in outside
    assert "url(" not in outside
    assert "@import" not in outside


def test_text_from_models_and_data_is_escaped(reported: Artifact) -> None:
    html = (reported / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.scripts == 0
    assert html.count("&lt;script&gt;alert(") >= 3  # a prompt, an answer, a reason
    assert "<script>alert('x')</script>" in page.text  # and the reader sees it as it was
    assert "(nothing)" in page.text  # an empty answer is said
    assert "herd: <test>" in page.text


@pytest.mark.parametrize(
    "kept",
    [["curate"], ["tokenize"], ["fit"], ["pretrain"], ["evaluate"], ["round-1/dpo"], ["round-1/reward"], ["curate", "pretrain"]],
)
def test_missing_stages_are_left_out(
    whole: dict[str, Artifact], kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "png", lambda _: b"")  # figures are built; a whole run's are drawn
    artifact = report({label: whole[label] for label in kept}, tmp_path)
    page = Page((artifact / "index.html").read_text(encoding="utf-8"))
    assert {"cost", "provenance"} <= set(page.ids)
    assert ("data" in page.ids) == bool({"curate", "tokenize"} & set(kept))
    assert "None" not in page.text
    assert "nan" not in page.text.split()
    summary = json.loads((artifact / "summary.json").read_text())
    assert (summary["pretrain"] is None) == ("pretrain" not in kept)
    assert (summary["evaluation"] is None) == ("evaluate" not in kept)
    assert (summary["scaling"] is None) == ("fit" not in kept)
    assert len(summary["rounds"]) == int(any("/" in label for label in kept))
    assert set(summary["seconds_by_stage"]) == set(kept)


def test_no_stage_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no finished stages"):
        report({}, tmp_path)


def test_summary_has_the_promised_keys_and_the_stages_numbers(whole: dict[str, Artifact]) -> None:
    summary = summarise(RunData(whole))
    assert summary["corpus"] == {
        "documents_in": 1000, "documents_out": 700, "characters_out": 7_000_000, "documents_by_domain": None,
        "tokens_by_domain": {"general": 1000, "code": 500}, "heldout_tokens_by_domain": None,
    }  # fmt: skip
    assert summary["tokenizer"]["vocab_size"] == 2048
    assert summary["tokenizer"]["characters_per_token"] == 2.7
    scaling = summary["scaling"]
    assert {"budgets", "alpha", "alpha_interval", "A", "flagship", "predicted_loss", "predicted_loss_interval"} <= scaling.keys()
    assert scaling["measured_loss"] == 4.3
    assert scaling["measured_in_interval"] is True
    assert {"loss", "tokens", "flops", "bits_per_byte_by_domain"} <= summary["pretrain"].keys()
    [first] = summary["rounds"]
    assert first["reward"] == {
        "accuracy": 0.8, "interval": [0.72, 0.86], "heldout_pairs": 100, "length_accuracy": 0.75, "by_round": None,
    }  # fmt: skip
    assert scaling["flagship"]["tokens_interval"] == [30720, 122880]
    assert scaling["flagship"]["parameters_interval"] == [2.5e5, 1e6] and scaling["best_cell_loss"] == 4.5
    assert summary["evaluation"]["lexical_overlap"]["acc"] == 0.345
    assert first["sft"]["loss"] == 2.0
    assert first["dpo"]["rewards_accuracies"] == 0.7
    assert first["dpo"]["rewards_margins"] == 0.5
    score = summary["evaluation"]["scores"]["round-1/sft"]["documentation_choice"]["acc_norm"]
    assert score["value"] == 0.32
    assert score["interval"] == pytest.approx([0.29, 0.35])
    assert score["n"] == 600
    for by_task in summary["evaluation"]["scores"].values():
        for by_score in by_task.values():
            assert all(s["interval"][0] <= s["value"] <= s["interval"][1] for s in by_score.values())
    assert summary["peak_memory_bytes"] == max(a.manifest["peak_memory_bytes"] for a in whole.values())
    json.dumps(summary, allow_nan=False)


def test_claims_follow_the_intervals(whole: dict[str, Artifact], make: Any) -> None:
    found = claims(RunData(whole))
    assert [claim.verdict for claim in found] == ["yes"] * 6
    bigram, choice, reward, win, forecast = (claim.detail for claim in found[1:])
    assert bigram == "by 0.40 nats per token, 95% interval [0.30, 0.50]; unproven in code"
    assert choice.endswith("counting shared words: 34.5% [31.0, 38.0]%")
    assert reward == (
        "80.0% [72.0, 86.0]% on 100 pairs of the grades trained on, 80.0% [75.0, 85.0]% on 100 of all grades; "
        "length alone: 75.0%, it is not shown to beat that"
    )
    assert win.endswith("ties 7; by the grader's rule 45.0% [38.0, 52.0]%, ties 9")
    assert forecast.endswith("inside an interval of 0.30; best cell of the sweep 4.500")
    results = json.loads((whole["evaluate"] / "results.json").read_text())
    base = results["results"]["pretrain"]
    base["ngram_baselines"]["margin_over_bigram_interval,none"] = [-0.1, 0.9]
    base["documentation_choice"]["acc_norm_interval,none"] = [0.20, 0.24]
    results["comparisons"][0] |= {"win_rate": 0.49, "interval": [0.42, 0.56]}
    metrics = {"accuracy": 0.55, "accuracy_interval": [0.45, 0.64], "heldout_pairs": 90, "length_accuracy": 0.7}
    changed = whole | {
        "evaluate": make("evaluate", "other", {}, {"results.json": results}),
        "round-1/reward": make("reward", "other-reward", metrics),
        "fit": make("scaling-fit", "other-fit", {"predicted_loss": 4.0, "predicted_loss_interval": [3.9, 4.1]}),
    }
    verdicts = [claim.verdict for claim in claims(RunData(changed))]
    assert verdicts == ["yes", "open", "no", "open", "open", "no"]
    assert "it does worse" in claims(RunData(changed))[3].detail


def test_the_mark_beside_the_grade_of_the_best_answer_follows_its_interval() -> None:
    grades = {"score_best": 0.310, "score_all": 0.286}
    marks = [_best_and_all(grades | {"score_gain_interval": bounds}) for bounds in ([0.01, 0.04], [-0.01, 0.05], [-0.03, -0.01])]
    assert marks == ["0.310 / 0.286 ✓", "0.310 / 0.286 ~", "0.310 / 0.286 ✗"]
    assert _best_and_all(grades) == "0.310 / 0.286"  # without an interval nothing is shown


def test_models_of_one_kind_have_a_shape_for_each_round() -> None:
    labels = ["pretrain", "sft-seed", "round-1/sft", "round-2/sft", "round-7/sft"]
    assert [_mark(label) for label in labels] == ["o", "o", "s", "^", "s"]


def test_a_wide_forecast_is_no_success(whole: dict[str, Artifact], make: Any) -> None:
    metrics = whole["fit"].metrics | {"best_cell_loss": 4.4}
    changed = RunData(whole | {"fit": make("scaling-fit", "wide-fit", metrics)})
    claim = claims(changed)[-1]
    assert (claim.verdict, claim.mark) == ("open", "~ open")
    assert claim.detail.endswith("inside, but the interval is wide")


def test_the_page_says_what_weakens_a_number(whole: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "_draw", lambda *_: None)  # figures take seconds, and words are looked for
    dpo = {label: whole[label] for label in ("round-1/dpo", "round-1/dpo-b")}
    for label, artifact in dpo.items():
        config = {"optimizer": {"lr": 4e-4}, "seed": int(label.endswith("b"))}
        dpo[label] = Artifact(artifact.path, artifact.manifest | {"config": config})
    text = " ".join(
        str(block.content)
        for section in all_sections(RunData(whole | dpo, ["Its rate was chosen by win rates."]), [], 0)
        for block in section.blocks
    )
    for said in (
        "1 of 2 budgets have an optimum inside their points.",
        "in [250K, 1M] parameters",
        "0.227 / 0.240 ✗",
        "a reference, at times lightly flawed, against one with more rule-made flaws",
        "the references (12 training pairs by round), which SFT did not see",
        "differ by their seed alone",
        "Its rate was chosen by win rates.",
        "['code', '+0.10 [-0.20, 0.40]', '–', '9.25 times', '~ unproven']",
        "['general', '+0.50 [0.40, 0.60]', '31', '0.60 times', '✓ better']",
        "By the grader's rule it wins 45.0% [38.0, 52.0]% of them (ties: 9); mean grades 0.41 and 0.43 of 1.",
        "set after scores of an earlier run had been seen",
        "without any model, has 34.5% [31.0, 38.0]%",
    ):
        assert said in text, said
    other = dpo | {"round-1/dpo-b": Artifact(dpo["round-1/dpo-b"].path, dpo["round-1/dpo-b"].manifest | {"config": {"beta": 1}})}
    text = str([block.content for s in all_sections(RunData(whole | other), [], 0) for block in s.blocks])
    assert "seed alone" not in text and "was chosen by win rates" not in text


def test_the_same_stages_give_the_same_page(whole: dict[str, Artifact], reported: Artifact, tmp_path: Path) -> None:
    again = report(whole, tmp_path)
    for name in ("index.html", "summary.json"):
        assert (again / name).read_bytes() == (reported / name).read_bytes()


def test_a_damaged_result_is_named(whole: dict[str, Artifact], make: Any, tmp_path: Path) -> None:
    broken = make("evaluate", "broken", {}, {"results.json": '{"results": '})
    with pytest.raises(UserError, match=r"results\.json' is damaged"):
        report({"evaluate": broken}, tmp_path)


def test_the_configuration_composes() -> None:
    job = make_job("report", compose("report", ["run.name=laptop", "chat_samples=2"]))
    assert job.config == ReportConfig(seed=0, title="herd: laptop", notebook="scaling_laws", chat_samples=2)
    with pytest.raises(UserError, match="chat_samples"):
        make_job("report", compose("report", ["chat_samples=-1"]))
