"""Sampling K answers to each of many prompts, reproducibly.

A prompt is run through the model once; its keys and values are then copied to its K samples, which are decoded
together, a token a step. Prompts are batched with others of nearly their length, padded on the left to a multiple of
16 that depends on the prompt alone. So every shape that enters the arithmetic of a sample, but for the number of
rows, is a function of its own prompt; and each sample draws from its own random stream, named by seed, prompt and
index. What remains is that a matrix product may round a row differently in a batch of another size. With one thread
on the CPUs at hand it does not (tests compare tokens exactly); where it does, a token changes only if its draw falls
within rounding of the edge between two tokens.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.model.cache import KVCache
from herd.model.masks import Dense
from herd.model.transformer import Transformer
from herd.runs.progress import progress
from herd.runs.seeds import stream

_PAD_MULTIPLE = 16
_NUCLEUS_GUESS = 128


@dataclass(frozen=True)
class SamplingConfig:
    """How to draw tokens."""

    max_new_tokens: int = 128  # tokens after the prompt at most
    temperature: float = 1.0  # logits are divided by this; 0 = always the likeliest token
    top_p: float = 1.0  # keep the smallest set of likeliest tokens whose probability reaches this, in (0, 1]
    seed: int = 0  # of all draws
    top_k: int = 0  # keep this many likeliest tokens, before top_p; 0 = all

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: must be at least 1.")
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}: must be 0 (greedy) or positive.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: must lie in (0, 1].")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: must be 0 (all) or positive.")


@dataclass(frozen=True)
class Sample:
    """One answer."""

    tokens: list[int]  # new tokens only; ends with the stop id when finished
    finished: bool  # a stop id was drawn; False: cut off at max_new_tokens
    logprob: float  # log-probability of these tokens under the model itself (temperature 1, no top-p), nats


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    samples_per_prompt: int,
    config: SamplingConfig,
    stop_ids: Iterable[int],
    batch_size: int = 256,
) -> list[list[Sample]]:
    """Draw ``samples_per_prompt`` continuations of every prompt.

    A sample is a function of the model, its prompt, ``config`` and its index; neither order nor company of the
    prompts matters.

    Args:
        model: on any device; sampled in the precision of its weights, or of autocast.
        prompts: token ids, each with at least one token.
        samples_per_prompt: K.
        config: temperature, top-p, length, seed.
        stop_ids: ids that end a sample.
        batch_size: samples decoded together at most (but never fewer than the K of one prompt).

    Returns:
        For each prompt, in the order given, its K samples.

    Raises:
        UserError: an empty prompt, or one that leaves no room for ``max_new_tokens`` within ``max_seq_len``.
    """
    longest = model.config.max_seq_len - config.max_new_tokens
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"Prompt {i} is empty: give it at least the begin-of-text token.")
        if len(prompt) > longest:
            raise UserError(
                f"Prompt {i} has {len(prompt)} tokens; with max_new_tokens={config.max_new_tokens} the model's max_seq_len "
                f"of {model.config.max_seq_len} leaves room for {max(longest, 0)}: lower max_new_tokens or shorten the prompt."
            )
    if samples_per_prompt < 1:
        raise UserError(f"samples_per_prompt is {samples_per_prompt}: must be at least 1.")
    results: list[list[Sample]] = [[] for _ in prompts]
    stops = torch.tensor(sorted(set(stop_ids)), dtype=torch.int64, device=model.output_weight.device)
    with torch.inference_mode(), progress("sampling", len(prompts) * samples_per_prompt, "samples") as bar:
        for batch in _batches(prompts, max(1, batch_size // samples_per_prompt)):
            samples = _decode(model, [prompts[i] for i in batch], samples_per_prompt, config, stops)
            for i, of_prompt in zip(batch, samples, strict=True):
                results[i] = of_prompt
            bar.advance(len(batch) * samples_per_prompt)
    return results


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices of at most ``size`` prompts of one padded length."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_length[_padded_length(prompt)].append(i)
    for _, indices in sorted(by_length.items()):
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _padded_length(prompt: Sequence[int]) -> int:
    return -(-len(prompt) // _PAD_MULTIPLE) * _PAD_MULTIPLE


def _decode(
    model: Transformer,
    prompts: list[Sequence[int]],
    samples: int,
    config: SamplingConfig,
    stops: Tensor,
) -> list[list[Sample]]:
    """Samples of prompts that share a padded length."""
    device = stops.device
    padded = _padded_length(prompts[0])
    cache, logits, padding = _prefill(model, prompts, padded, padded + config.max_new_tokens)
    fork = torch.arange(len(prompts), device=device).repeat_interleave(samples)
    cache, logits, padding = cache.select(fork), logits[fork], padding[fork]
    draws = torch.from_numpy(_draws(prompts, samples, config)).to(device)

    rows = len(fork)
    tokens = torch.zeros(rows, config.max_new_tokens, dtype=torch.int64, device=device)
    lengths = torch.zeros(rows, dtype=torch.int64, device=device)
    logprobs = torch.zeros(rows, dtype=torch.float64, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    active = torch.arange(rows, device=device)  # the rows that cache and logits still hold
    keys = torch.arange(cache.capacity, device=device)

    for step in range(config.max_new_tokens):
        drawn = choose(logits, draws[active, step], config.temperature, config.top_p, config.top_k)
        running = ~finished[active]
        written = active[running]
        tokens[written, step] = drawn[running]
        logprobs[written] += logits[running].log_softmax(-1).gather(1, drawn[running, None]).squeeze(1).double()
        lengths[written] += 1
        finished[written] = torch.isin(drawn[running], stops)
        if step + 1 == config.max_new_tokens or bool(finished.all()):
            break
        kept = (~finished[active]).nonzero().squeeze(1)
        if len(kept) <= len(active) // 2:  # a copy of the cache pays once half of it is idle
            active, cache, drawn = active[kept], cache.select(kept), drawn[kept]
        pads = padding[active]
        positions = cache.length - pads
        allowed = keys[: cache.length + 1] >= pads[:, None]
        hidden = model(drawn[:, None], positions[:, None], Dense(allowed[:, None]), cache)
        logits = model.logits(hidden[:, -1])

    columns = zip(tokens.tolist(), lengths.tolist(), finished.tolist(), logprobs.tolist(), strict=True)
    flat = [Sample(row[:length], done, logprob) for row, length, done, logprob in columns]
    return [flat[i : i + samples] for i in range(0, rows, samples)]


def _prefill(model: Transformer, prompts: list[Sequence[int]], padded: int, capacity: int) -> tuple[KVCache, Tensor, Tensor]:
    """Run left-padded prompts once: their cache, the logits after the last token (n, V), the padding of each (n,)."""
    device, dtype = model.output_weight.device, model.output_weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    padding = torch.tensor([padded - len(p) for p in prompts], device=device)
    tokens = torch.tensor([[0] * (padded - len(p)) + list(p) for p in prompts], device=device)
    steps = torch.arange(padded, device=device)
    positions = (steps - padding[:, None]).clamp(min=0)
    causal = (steps[:, None] >= steps) & (steps >= padding[:, None, None])
    allowed = causal | torch.eye(padded, dtype=torch.bool, device=device)  # padding sees itself: no row is empty
    cache = KVCache(model.config, len(prompts), capacity, device, dtype)
    hidden = model(tokens, positions, Dense(allowed), cache)
    return cache, model.logits(hidden[:, -1]), padding


def _draws(prompts: list[Sequence[int]], samples: int, config: SamplingConfig) -> np.ndarray:
    """Uniform numbers in [0, 1), (prompts x samples, max_new_tokens), float32, a stream for each sample."""
    rows = []
    for prompt in prompts:
        digest = hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).hexdigest()
        for k in range(samples):
            rows.append(stream(config.seed, "sample", digest, k).random(config.max_new_tokens, dtype=np.float32))
    return np.stack(rows)


def choose(logits: Tensor, draws: Tensor, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """Pick a token of each row by inverting its cumulative distribution; each row on its own.

    Args:
        logits: (n, V).
        draws: (n,) uniform in [0, 1).
        temperature: 0 takes the likeliest.
        top_p: nucleus (Holtzman et al. 2020): likeliest tokens until their probability reaches this, at least one.
        top_k: likeliest tokens that are left at all (Fan et al. 2018); ``top_p`` then counts among them. 0 = every one.

    Returns:
        (n,) int64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    if 0 < top_k < logits.shape[1]:
        likeliest, ids = logits.topk(top_k, dim=-1)
        kept = _nucleus((likeliest / temperature).softmax(-1), top_p)
        return ids.gather(1, _invert(kept, draws)[:, None]).squeeze(1)
    probabilities = (logits / temperature).softmax(-1)
    if top_p == 1:
        return _invert(probabilities, draws)
    # Most nuclei are small. The few likeliest tokens are found fast; only rows that need more are sorted in full.
    likeliest, ids = probabilities.topk(min(_NUCLEUS_GUESS, probabilities.shape[1]), dim=-1)
    picked = ids.gather(1, _invert(_nucleus(likeliest, top_p), draws)[:, None]).squeeze(1)
    wide = (likeliest.sum(-1) < top_p).nonzero().squeeze(1)
    if len(wide):
        likeliest, ids = torch.sort(probabilities[wide], dim=-1, descending=True, stable=True)
        picked[wide] = ids.gather(1, _invert(_nucleus(likeliest, top_p), draws[wide])[:, None]).squeeze(1)
    return picked


def _nucleus(descending: Tensor, top_p: float) -> Tensor:
    """Zero what follows once the tokens before it reach ``top_p``; the first token always stays."""
    before = descending.cumsum(-1) - descending
    return descending.masked_fill(before >= top_p, 0.0)


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """Index of each row at which the cumulative weight first exceeds draw x total, (n,)."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    picked = torch.searchsorted(cumulative, draws[:, None] * total, right=True)
    # Rounding must not step past the last index with any weight.
    return torch.minimum(picked, torch.searchsorted(cumulative, total)).squeeze(1)
