"""Steering: a system message that shapes answers while they are drawn, and that training does not see (section 4.2.2)."""

from collections.abc import Sequence

from herd.dialog.messages import Message, Role
from herd.runs.seeds import stream


def steer(
    messages: tuple[Message, ...], system_prompts: Sequence[str], seed: int, name: str
) -> tuple[tuple[Message, ...], str | None]:
    """Put one of ``system_prompts`` before a dialog that has no system message of its own.

    Args:
        seed, name: of the random choice; ``name`` is the prompt's id, so that neither order nor company of prompts matters.

    Returns:
        The dialog to answer, and the system prompt used; None where there is none.
    """
    if not system_prompts or messages[0].role is Role.SYSTEM:
        return messages, None
    chosen = system_prompts[int(stream(seed, "steer", name).integers(len(system_prompts)))]
    return (Message(Role.SYSTEM, chosen), *messages), chosen
