"""A tiny tokenizer, model and preference data for the tests of reward model, SFT and DPO."""

import functools

import torch

from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Grade, Preference
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

WINDOW = 96
WORDS = ["red", "blue", "green", "grey", "pink", "black", "white", "brown"]


@functools.cache
def tokenizer() -> Tokenizer:
    text = "What colour is it? The colour of the thing is " + " ".join(WORDS) + ". assistant user system\n\n"
    config = TokenizerConfig(vocab_size=320, special_tokens=11, training_characters=10_000, fill_with_reserved=True)
    return train_tokenizer([text * 20], config)


def tiny_model(seed: int = 0) -> Transformer:
    config = ModelConfig(
        dim=32,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        ffn_dim=64,
        vocab_size=tokenizer().vocab_size,
        max_seq_len=128,
        tie_embeddings=True,
    )
    model = Transformer(config)
    model.init_weights(seed)
    return model


def user(text: str) -> tuple[Message, ...]:
    return (Message(Role.USER, text),)


def says(text: str) -> tuple[Message, ...]:
    return (Message(Role.ASSISTANT, text),)


def preferences(count: int, edited_every: int = 3) -> list[Preference]:
    """The right colour is chosen, an exclamation of another is rejected; some are edited."""
    rows = []
    for i in range(count):
        right, wrong = WORDS[i % 8], WORDS[(i + 3) % 8]
        edited = says(f"The thing is {right}.") if i % edited_every == 0 else None
        prompt = user(f"The thing {i} is {right}. What colour is it?")
        rows.append(Preference(f"p{i}", f"q{i}", prompt, says(f"{right}."), says(f"{wrong}!!!"), Grade.BETTER, edited))
    return rows


def dialogs(count: int) -> list[tuple[Message, ...]]:
    return [row.prompt + row.chosen for row in preferences(count)]


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
