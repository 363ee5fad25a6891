"""Bits per byte, baselines and compression: arithmetic by hand on the artificial corpus."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from herd.evaluation.bench import Bench, HeldoutConfig
from herd.evaluation.scoring import LanguageModel
from herd.evaluation.tasks.bits_per_byte import BitsPerByte, BitsPerByteConfig
from herd.evaluation.tasks.compression import Compression, CompressionConfig
from herd.evaluation.tasks.ngram_baselines import NgramBaselines, NgramBaselinesConfig

MakeLM = Callable[..., LanguageModel]


def uniform(lm: LanguageModel) -> LanguageModel:
    """Makes every next token equally likely."""
    with torch.no_grad():
        lm.model.norm.weight.zero_()
    return lm


def test_bits_per_byte_of_a_uniform_model(bench: Bench, make_lm: MakeLM) -> None:
    lm = uniform(make_lm("uniform"))
    task = BitsPerByte(BitsPerByteConfig(), bench)
    task.language_model(lm)
    results = task.finish().results["uniform"]
    nats = math.log(lm.model.config.vocab_size)
    mean = 0.0
    for domain, heldout in bench.heldout.items():
        texts = [bench.tokenizer.decode(d.tolist(), skip_special_tokens=True) for d in heldout.documents]
        size = sum(len(text.encode("utf-8")) for text in texts)
        predicted = sum(len(document) - 1 for document in heldout.documents)
        expected = predicted * nats / (math.log(2) * size)
        metrics = results[f"bits_per_byte_{domain}"]
        assert metrics["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
        assert metrics["loss,none"] == pytest.approx(nats, rel=1e-5)
        assert metrics["loss_interval,none"] == pytest.approx([nats, nats], rel=1e-5)
        mean += bench.mix[domain] * expected
    assert results["bits_per_byte"]["bits_per_byte,none"] == pytest.approx(mean, rel=1e-5)


def test_heldout_documents_are_whole_or_cut_and_within_the_limit(bench: Bench) -> None:
    for domain, heldout in bench.heldout.items():
        source = bench.shards.source("heldout", domain)
        whole = {tuple(source.tokens[a:b].tolist()) for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)}
        for document, size in zip(heldout.documents, heldout.text_bytes, strict=True):
            assert document[0] == bench.tokenizer.bos_id
            assert len(document) <= 200
            assert any(w[: len(document)] == tuple(document) for w in whole)
            assert size == len(bench.tokenizer.decode(document.tolist(), skip_special_tokens=True).encode())
        gathered = sum(len(d) for d in heldout.documents)
        assert gathered - len(heldout.documents[-1]) < 3000
    everything = replace(bench, heldout_config=HeldoutConfig(0, 0, 64)).heldout
    assert {d: len(h.documents) for d, h in everything.items()} == {
        d: bench.shards.source("heldout", d).documents for d in everything
    }


def test_margins_over_the_baselines_are_paired(bench: Bench, make_lm: MakeLM) -> None:
    task = NgramBaselines(NgramBaselinesConfig(), bench)
    task.language_model(uniform(make_lm("uniform")))
    results = task.finish().results
    loss = {label: results[label]["ngram_baselines"]["loss,none"] for label in ("unigram", "bigram", "uniform")}
    assert loss["bigram"] < loss["unigram"] < loss["uniform"]
    for name in ("unigram", "bigram"):
        margin = results["uniform"]["ngram_baselines"][f"margin_over_{name},none"]
        low, high = results["uniform"]["ngram_baselines"][f"margin_over_{name}_interval,none"]
        assert margin == pytest.approx(loss[name] - loss["uniform"], rel=1e-6)
        assert low < margin < high < 0


def test_baselines_on_every_heldout_token_once(bench: Bench) -> None:
    """The task's sums by document against the model applied to each document alone."""
    from herd.evaluation.ngram import fit_ngram

    task = NgramBaselines(NgramBaselinesConfig(), bench)
    sources = {d: bench.shards.source("train", d) for d in bench.shards.domains("train")}
    model = fit_ngram({d: (s.tokens, np.asarray(s.offsets)) for d, s in sources.items()}, bench.mix, bench.tokenizer.vocab_size)
    for domain, heldout in bench.heldout.items():
        expected = [(model.unigram_nll(d[1:]).sum(), model.bigram_nll(d[:-1], d[1:]).sum()) for d in heldout.documents]
        assert task.nll["unigram"][domain] == pytest.approx([e[0] for e in expected])
        assert task.nll["bigram"][domain] == pytest.approx([e[1] for e in expected])


def test_compression_counts_characters_of_text(bench: Bench) -> None:
    result = Compression(CompressionConfig(), bench).finish()
    metrics = result.results["tokenizer"]["compression_multilingual"]
    documents = bench.heldout["multilingual"].documents
    texts = [bench.tokenizer.decode(d.tolist(), skip_special_tokens=True) for d in documents]
    tokens = sum(len(bench.tokenizer.encode(text)) for text in texts)
    assert metrics["characters_per_token,none"] == pytest.approx(sum(map(len, texts)) / tokens, rel=0.02)
    assert metrics["bytes_per_token,none"] > metrics["characters_per_token,none"]  # umlauts take two bytes
    assert set(result.results["tokenizer"]) == {"compression", *(f"compression_{d}" for d in bench.heldout)}
