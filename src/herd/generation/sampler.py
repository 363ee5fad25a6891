"""K answers to each of many prompts: what draws them, and our own engine, run until all is drawn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from herd.config.errors import UserError
from herd.generation.choose import SamplingConfig
from herd.generation.engine import PAGE_SIZE, Engine, Request
from herd.model.transformer import Transformer
from herd.runs.progress import progress


@dataclass(frozen=True)
class Sample:
    """One answer."""

    tokens: list[int]  # new tokens only; ends with the stop id when finished
    finished: bool  # a stop id was drawn; False: cut off at max_new_tokens
    logprob: float  # log-probability of these tokens under the model itself (temperature 1, no top-p), nats


@dataclass(frozen=True)
class Asked:
    """What is wanted of a sampler."""

    prompts: Sequence[Sequence[int]]  # token ids, each with at least one
    samples: int  # K, of each prompt
    config: SamplingConfig
    stops: frozenset[int]  # ids that end a sample

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples_per_prompt is {self.samples}: must be at least 1.")


# Gets the place of a prompt among those given, and all of its samples, as soon as the last of them has ended.
Done = Callable[[int, list[Sample]], None]


class Sampler(Protocol):
    """What draws answers: a model within an engine, here or in another process."""

    def draw(self, asked: Asked, done: Done | None = None) -> list[list[Sample]]:
        """For each prompt, in the order given, its samples; see :func:`generate`."""
        ...


@dataclass(frozen=True, eq=False)
class OwnSampler:
    """Our own engine, in this process."""

    model: Transformer
    batch_size: int = 256  # samples drawn together at most
    max_kv_tokens: int = 0  # positions whose keys and values are held at once; 0 = what `batch_size` samples may need

    def draw(self, asked: Asked, done: Done | None = None) -> list[list[Sample]]:
        return generate(
            self.model, asked.prompts, asked.samples, asked.config, asked.stops, self.batch_size, self.max_kv_tokens, done
        )


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    samples_per_prompt: int,
    config: SamplingConfig,
    stop_ids: Iterable[int],
    batch_size: int = 256,
    max_kv_tokens: int = 0,
    done: Done | None = None,
) -> list[list[Sample]]:
    """Draw ``samples_per_prompt`` continuations of every prompt.

    A sample is a function of the model, its prompt, ``config`` and its index; neither order nor company of the
    prompts matters, nor how many are drawn together.

    Args:
        model: on any device; sampled in the precision of its weights, or of autocast.
        prompts: token ids, each with at least one token.
        samples_per_prompt: K.
        config: temperature, top-p, length, seed.
        stop_ids: ids that end a sample.
        batch_size: samples drawn together at most.
        max_kv_tokens: positions whose keys and values are held at once at most; 0 takes what ``batch_size`` samples may need.
        done: told of each prompt whose samples have all ended, in whatever order that comes.

    Returns:
        For each prompt, in the order given, its K samples.

    Raises:
        UserError: an empty prompt, or one that leaves no room for ``max_new_tokens`` within ``max_seq_len`` or memory.
    """
    if samples_per_prompt < 1:
        raise UserError(f"samples_per_prompt is {samples_per_prompt}: must be at least 1.")
    if not prompts:
        return []
    stops = frozenset(stop_ids)
    longest = max(map(len, prompts))
    engine = Engine(model, batch_size, max_kv_tokens or enough(longest, len(prompts), samples_per_prompt, config, batch_size))
    numbers = {}
    for i, prompt in enumerate(prompts):
        try:
            numbers[engine.submit(Request(tuple(prompt), samples_per_prompt, config, stops))] = i
        except UserError as error:
            raise UserError(f"Prompt {i}: {error}") from None
    tokens: list[list[list[int]]] = [[[] for _ in range(samples_per_prompt)] for _ in prompts]
    logprobs = [[0.0] * samples_per_prompt for _ in prompts]
    finished = [[False] * samples_per_prompt for _ in prompts]
    left = [samples_per_prompt] * len(prompts)

    def samples_of(i: int) -> list[Sample]:
        return [Sample(*sample) for sample in zip(tokens[i], finished[i], logprobs[i], strict=True)]

    with progress("sampling", len(prompts) * samples_per_prompt, "samples") as bar:
        while engine.busy:
            ended = 0
            for drawn in engine.step():
                i, k = numbers[drawn.request], drawn.sample
                tokens[i][k].append(drawn.token)
                logprobs[i][k] += drawn.logprob
                finished[i][k] = drawn.stopped
                ended += drawn.ended
                left[i] -= drawn.ended
                if done is not None and drawn.ended and not left[i]:
                    done(i, samples_of(i))
            if ended:
                bar.advance(ended)
    return [samples_of(i) for i in range(len(prompts))]


def enough(longest: int, prompts: int, samples: int, config: SamplingConfig, batch_size: int) -> int:
    """Positions that ``batch_size`` samples of prompts of at most ``longest`` tokens may need at once."""
    rows = min(batch_size, prompts * samples)
    # Samples of at most so many prompts run together: the last of one, whole ones, the first of another.
    together = min(prompts, rows // samples + 2)
    pages, run = -(-longest // PAGE_SIZE), 1 << (-(-config.max_new_tokens // PAGE_SIZE) - 1).bit_length()
    return (together * pages + rows * run) * PAGE_SIZE
