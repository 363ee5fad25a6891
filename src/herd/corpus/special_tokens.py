"""The special tokens of Llama 3.1, by name and order (llama-models ``models/llama3/tokenizer.py``).

They follow the byte-pair vocabulary, so token ``k`` of this list has id ``vocabulary size - count + k``; in the paper's
preset the first is 128,000 and there are 256.
"""

from herd.config.errors import UserError

BEGIN_OF_TEXT = "<|begin_of_text|>"  # once, first in a document or dialog
END_OF_TEXT = "<|end_of_text|>"  # ends a pre-training document
PAD = "<|finetune_right_pad_id|>"  # never an end-of-anything token, so that padding cannot teach one
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_MESSAGE = "<|eom_id|>"  # the assistant expects a tool's result
END_OF_TURN = "<|eot_id|>"
PYTHON_TAG = "<|python_tag|>"  # starts a tool call

NAMED = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    PAD,
    "<|step_id|>",
    START_HEADER,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TURN,
    PYTHON_TAG,
)
REQUIRED = (BEGIN_OF_TEXT, END_OF_TEXT, PAD, START_HEADER, END_HEADER, END_OF_MESSAGE, END_OF_TURN, PYTHON_TAG)


def special_token_names(count: int) -> tuple[str, ...]:
    """``count`` names: the eleven of Llama 3.1, then ``<|reserved_special_token_2|>`` and on.

    Raises:
        UserError: ``count`` is less than eleven.
    """
    if count < len(NAMED):
        raise UserError(f"special_tokens={count} is too few: the Llama 3 format needs {len(NAMED)} or more.")
    return NAMED + tuple(f"<|reserved_special_token_{2 + i}|>" for i in range(count - len(NAMED)))
