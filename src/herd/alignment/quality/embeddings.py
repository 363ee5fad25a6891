"""Dialogs as unit vectors, by one of several embedders: word statistics that need no model, a model's mean hidden state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from herd.alignment.fine_tuning import load_tokenizer
from herd.alignment.quality.dialogs import Dialog
from herd.config.errors import UserError
from herd.config.registry import Registry
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.render import render_batch
from herd.model.encoder import document_of, load_encoder, within_documents
from herd.model.io import load_model, load_reward_model, open_model
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.runs.stage import Artifact, Inputs


@dataclass(frozen=True)
class EmbeddingConfig:
    """Who turns dialogs into vectors."""

    kind: str  # tfidf (needs no model), model (input embedder: any model or reward model), encoder (herd distill-classifier)
    dimensions: int = 128  # tfidf: directions of the word statistics in which dialogs are clustered
    word_ngrams: int = 2  # tfidf: longest run of words that counts
    batch_tokens: int = 8192  # model, encoder: tokens of a forward pass

    def __post_init__(self) -> None:
        EMBEDDERS.get(self.kind)
        if min(self.dimensions, self.word_ngrams) < 1 or self.batch_tokens < 1:
            raise UserError("embedding: dimensions, word_ngrams and batch_tokens must be at least 1.")


@dataclass(frozen=True)
class Vectors:
    """Dialogs as unit vectors; one without any words has no length, and is like no other."""

    of_words: csr_matrix | np.ndarray  # (dialogs, features) float64: whose cosines decide
    reduced: np.ndarray  # (dialogs, dimensions) float64: what is clustered


# (dialogs, settings, inputs, seed, dialect) -> vectors of any length.
Embedder = Callable[[Sequence[Dialog], EmbeddingConfig, Inputs, int, str], Vectors]
EMBEDDERS: Registry[Embedder] = Registry("embedding")


def embed(dialogs: Sequence[Dialog], config: EmbeddingConfig, inputs: Inputs, seed: int, dialect: str) -> Vectors:
    """The dialogs' vectors by the embedder that the settings name."""
    found = EMBEDDERS.get(config.kind)(dialogs, config, inputs, seed, dialect)
    return Vectors(normalize(found.of_words), normalize(found.reduced))


@EMBEDDERS.register("tfidf")
def tfidf(dialogs: Sequence[Dialog], config: EmbeddingConfig, inputs: Inputs, seed: int, dialect: str) -> Vectors:
    """TF-IDF of words and marks, and of runs of them, clustered in its directions of largest variation (truncated SVD).

    These directions forget rare words, by which short dialogs on like subjects differ (`OddHandler`, `EvenHandler`), so the
    cosines are of all words.
    """
    ngrams = (1, config.word_ngrams)
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=ngrams, sublinear_tf=True, dtype=np.float64)
    texts = [dialog.text for dialog in dialogs]
    if not any(text.strip() for text in texts):
        return Vectors(np.zeros((len(texts), 1)), np.zeros((len(texts), 1)))
    counts = csr_matrix(vectorizer.fit_transform(texts))
    if config.dimensions >= min(counts.shape):
        return Vectors(counts, counts.toarray())
    with threadpool_limits(1):  # as in clustering: the same bits whatever the number of threads
        return Vectors(counts, TruncatedSVD(config.dimensions, random_state=seed % 2**32).fit_transform(counts))


@EMBEDDERS.register("model")
def mean_hidden(dialogs: Sequence[Dialog], config: EmbeddingConfig, inputs: Inputs, seed: int, dialect: str) -> Vectors:
    """Mean of a language or reward model's last hidden states over the dialog's tokens, each under the causal mask."""
    folder = _given(inputs) / "model"
    backbone = load_reward_model(folder).backbone if open_model(folder).kind == "reward" else load_model(folder)
    return _pooled(dialogs, backbone, _tokenizer(inputs), config, dialect, Documents)


@EMBEDDERS.register("encoder")
def encoder(dialogs: Sequence[Dialog], config: EmbeddingConfig, inputs: Inputs, seed: int, dialect: str) -> Vectors:
    """Mean of the hidden states of an encoder that `herd distill-classifier` trained, every token seeing the whole dialog."""
    backbone = load_encoder(_given(inputs) / "encoder").backbone
    device = _device(backbone)
    return _pooled(
        dialogs, backbone, _tokenizer(inputs), config, dialect, lambda lengths: within_documents(document_of(lengths).to(device))
    )


def _given(inputs: Inputs) -> Artifact:
    found = inputs.get("embedder")
    if found is None:
        raise UserError("embedding: this kind needs inputs.embedder=FOLDER (a model, or what `herd distill-classifier` made).")
    return found


def _tokenizer(inputs: Inputs) -> Tokenizer:
    if inputs.get("tokens") is None:
        raise UserError("embedding: a model needs inputs.tokens=FOLDER (what `herd tokenize` made).")
    return load_tokenizer(inputs)


def _device(backbone: Transformer) -> torch.device:
    return next(backbone.parameters()).device


@torch.no_grad()
def _pooled(
    dialogs: Sequence[Dialog],
    backbone: Transformer,
    tokenizer: Tokenizer,
    config: EmbeddingConfig,
    dialect: str,
    mask: Callable[[tuple[tuple[int, ...], ...]], Any],
) -> Vectors:
    """Of (dialogs, dim): dialogs of like length go through the model together; what is beyond its window is not read."""
    window = backbone.config.max_seq_len
    rendered = [r.tokens[:window] for r in render_batch([d.messages for d in dialogs], tokenizer, dialect=dialect)]
    order = sorted(range(len(rendered)), key=lambda i: (len(rendered[i]), i))
    vectors = np.zeros((len(dialogs), backbone.config.dim))
    device = _device(backbone)
    at = 0
    while at < len(order):
        longest = at + 1  # dialogs are in order of length, so the last of a group is its longest
        while longest < len(order) and (longest + 1 - at) * len(rendered[order[longest]]) <= config.batch_tokens:
            longest += 1
        group, at = order[at:longest], longest
        width = len(rendered[group[-1]])
        tokens = torch.full((len(group), width), tokenizer.pad_id, dtype=torch.int64)
        for row, i in enumerate(group):
            tokens[row, : len(rendered[i])] = torch.from_numpy(rendered[i])
        sizes = [len(rendered[i]) for i in group]
        lengths = tuple((n, width - n) if n < width else (n,) for n in sizes)
        positions = torch.arange(width).expand(len(group), width)
        hidden = backbone(tokens.to(device), positions.to(device), mask(lengths)).double().cpu()
        for row, (i, n) in enumerate(zip(group, sizes, strict=True)):
            vectors[i] = hidden[row, :n].mean(dim=0).numpy()
    return Vectors(vectors, vectors)
