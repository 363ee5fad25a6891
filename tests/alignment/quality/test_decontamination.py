"""Prompts of benchmarks and held-out prompts are not trained on, whatever stands around what the user says."""

from pathlib import Path
from types import SimpleNamespace

from herd.alignment.quality.decontamination import DecontaminationConfig, benchmark_prompts, decontaminate
from herd.alignment.quality.dialogs import Dialog, Ledger
from herd.alignment.quality.steps import STEPS
from herd.dialog.messages import Message, Role
from herd.dialog.rows import Prompt, write_jsonl


def dialog(name: str, *said: str, system: str = "") -> Dialog:
    """Messages of user and assistant in turn."""
    messages = [Message((Role.USER, Role.ASSISTANT)[i % 2], text) for i, text in enumerate(said)]
    return Dialog("a", name, (*([Message(Role.SYSTEM, system)] if system else []), *messages), {})


def test_a_prompt_of_several_turns_is_found_where_a_dialog_begins_with_it() -> None:
    prompts = benchmark_prompts(DecontaminationConfig(), {"h1": "what is it?", "h2": "first\nand then"})
    dialogs = [
        dialog("alone", "What is  it?", "a thing", system="Be brief."),
        dialog("whole", "first", "yes", "and then", "more"),
        dialog("longer", "first", "no", "and then", "more", "thanks", "welcome"),
        dialog("later", "hello", "hi", "what is it?", "a thing"),
        dialog("other", "first", "yes", "and now", "more"),
    ]
    ledger = Ledger()
    assert [d.id for d in decontaminate(dialogs, prompts, ledger)] == ["other"]
    assert [row["id"] for row in ledger.rows] == ["alone", "whole", "longer", "later"]


def test_a_held_out_prompt_is_told_by_what_the_user_says(tmp_path: Path) -> None:
    """Not by its system message, nor by the answers that stand between."""
    prompts = [
        Prompt("h1", "", "open", dialog("", "what is it?", system="Be kind.").messages, "x"),
        Prompt("h2", "", "open", dialog("", "first", "one answer", "and then").messages, "x"),
    ]
    write_jsonl(tmp_path / "heldout_prompts.jsonl", (prompt.to_dict() for prompt in prompts))
    context = SimpleNamespace(
        config=SimpleNamespace(decontamination=DecontaminationConfig()), inputs={"prompts": tmp_path}, report={}, ledger=Ledger()
    )
    dialogs = [dialog("a", "what is it?", "a thing"), dialog("b", "first", "another", "and then", "x"), dialog("c", "first", "x")]
    assert [d.id for d in STEPS.get("decontamination")(dialogs, context)] == ["c"]  # type: ignore[arg-type]
