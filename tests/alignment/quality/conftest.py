"""Dialogs for the tests of pruning, made by one line."""

import pytest

from herd.alignment.quality.dialogs import Dialog
from herd.dialog.messages import Message, Role


@pytest.fixture
def dialog():
    """(id, answers..., source, question, row keys) -> Dialog."""

    def make(name: str, *answers: str, source: str = "a", question: str = "Why?", **row) -> Dialog:
        messages = tuple(m for answer in answers for m in (Message(Role.USER, question), Message(Role.ASSISTANT, answer)))
        return Dialog(source, name, messages, {"id": name} | row)

    return make
