"""Steering: a seeded choice for each prompt, whatever its company; dialogs with a system message stay as they are."""

from collections import Counter

from herd.dialog.messages import Message, Role
from herd.generation.steering import steer

ASKED = (Message(Role.USER, "What is it?"),)


def test_each_prompt_gets_one_by_its_name():
    used = [steer(ASKED, ["a", "b", "c"], 1, f"prompt-{i}") for i in range(300)]
    assert all(messages == (Message(Role.SYSTEM, chosen), *ASKED) for messages, chosen in used)
    assert all(70 < count < 130 for count in Counter(chosen for _, chosen in used).values())
    assert used == [steer(ASKED, ["a", "b", "c"], 1, f"prompt-{i}") for i in range(300)]
    assert used != [steer(ASKED, ["a", "b", "c"], 2, f"prompt-{i}") for i in range(300)]


def test_without_prompts_or_beside_a_system_message_nothing_changes():
    assert steer(ASKED, [], 1, "x") == (ASKED, None)
    own = (Message(Role.SYSTEM, "mine"), *ASKED)
    assert steer(own, ["a"], 1, "x") == (own, None)
