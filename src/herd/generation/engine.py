"""Continuous batching over shared pages: prompts wait, are run once, and their samples enter, draw and leave one by one.

- A prompt is run through the model once, packed with others that enter at the same time. Its pages are held by all of its
  samples, each of which goes on in pages of its own.
- A sample enters when a row is free and there is a run of pages for its longest answer: nothing is ever swapped out or run again
  (the Llama 3 paper, section 4.2.2).
- A sample is a function of the model, its prompt, its settings and its index, and by rounding of whether many samples were asked
  for (:mod:`herd.generation.pages`). Its random numbers come from a stream of its own, and no product in the model takes another
  shape for its company's sake but in the number of rows, which is never under four. On the CPUs at hand with one thread a row's
  bits do not depend on that number (tests compare bits). Where they do, a token changes only if its draw falls within rounding
  of the edge between two tokens.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.generation.choose import SamplingConfig, choose, digest_of, draws_of
from herd.generation.decode_plan import decode_plan
from herd.generation.likeliest import Alternatives, Scored, likeliest, score_prompt
from herd.generation.pages import PagePool, Place, in_place, is_whole, pages_read
from herd.model.cache import Decode, PagedCache, Prefill
from herd.model.layout import lay_out_for_few_rows
from herd.model.masks import Grouped
from herd.model.transformer import Transformer

PAGE_SIZE = 64  # positions; 32 and 128 were 3-11% and 6-9% slower on a CPU (6M parameters, 16 samples of 757 tokens)
_FEWEST_ROWS = 4  # a product of fewer takes another kernel, which rounds otherwise
_TOGETHER = 2048  # tokens of prompts that are run at once; a longer prompt is run alone


@dataclass(frozen=True)
class Request:
    """A prompt and what is wanted of it."""

    prompt: tuple[int, ...]  # token ids, at least one
    samples: int  # K
    sampling: SamplingConfig
    stops: frozenset[int]  # ids that end a sample
    alternatives: int = 0  # likeliest tokens to tell with each token
    scored: bool = False  # also tell the log-probabilities of the prompt's own tokens


@dataclass(frozen=True)
class Drawn:
    """One token that a step drew."""

    request: int  # what submit() gave
    sample: int
    token: int
    logprob: float  # under the model itself (temperature 1, no top-p), nats
    ended: bool  # the last token of its sample
    stopped: bool  # and that because it is one of the stops
    alternatives: Alternatives = ()  # what could have stood in its place, where that was asked for
    prompt: tuple[Scored, ...] = ()  # with the first token of a sample, where asked for: the prompt's tokens but the first


@dataclass(eq=False)
class _Waiting:
    """A request whose samples have not all started."""

    id: int
    request: Request
    digest: str
    started: int = 0
    pages: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # of the prompt, once it has a place
    logits: Tensor | None = None  # (vocab_size,) after its last token
    scored: tuple[Scored, ...] = ()  # its tokens, where that was asked for


@dataclass(eq=False)
class _Row:
    """A sample that is being drawn."""

    source: _Waiting
    sample: int
    run: np.ndarray  # pages of its own
    draws: np.ndarray
    tokens: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Of the token that was drawn last."""
        return len(self.source.request.prompt) + len(self.tokens) - 1

    @property
    def place(self) -> Place:
        """Where its keys and values are."""
        of, request = self.source, self.source.request
        return Place(of.pages, len(request.prompt), self.run, self.position, of.id, request.samples)


class Engine:
    """Draws samples for many requests at once.

    Args:
        model: on any device; sampled in the precision of its weights, or of autocast. Frozen weights on a CPU are laid out for
            it (:mod:`herd.model.layout`).
        max_rows: samples drawn together at most.
        max_kv_tokens: positions whose keys and values are held at once at most; rounded down to whole pages.
        page_size: positions of a page. Another size rounds otherwise.
    """

    def __init__(self, model: Transformer, max_rows: int, max_kv_tokens: int, page_size: int = PAGE_SIZE) -> None:
        if max_rows < 1 or max_kv_tokens < page_size:
            raise UserError(
                f"An engine needs room for 1 sample and for {page_size} tokens of keys and values (a page): "
                f"batch_size={max_rows}, max_kv_tokens={max_kv_tokens}."
            )
        device, dtype = model.output_weight.device, model.output_weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        self.model, self.max_rows, self.page_size = model, max_rows, page_size
        self.pool = PagePool(max_kv_tokens // page_size)
        self.storage = PagedCache(model.config, max_kv_tokens // page_size, page_size, device, dtype)
        lay_out_for_few_rows(model)
        self._waiting: deque[_Waiting] = deque()
        self._rows: list[_Row] = []
        self._submitted = 0
        # Of the step before, while its rows stay and read as many pages each.
        self._plan: Decode | None = None
        self._reads: list[int] = []

    @property
    def busy(self) -> bool:
        """Whether anything is left to draw."""
        return bool(self._waiting or self._rows)

    def submit(self, request: Request) -> int:
        """Put a request at the end of the queue; the number that its tokens come back with.

        Raises:
            UserError: an empty prompt, one that leaves no room for the answer, or a request that memory can never hold.
        """
        window, longest = self.model.config.max_seq_len, request.sampling.max_new_tokens
        if not request.prompt:
            raise UserError("the prompt is empty: give it at least the begin-of-text token.")
        if len(request.prompt) + longest > window:
            raise UserError(
                f"the prompt has {len(request.prompt)} tokens; with max_new_tokens={longest} the model's max_seq_len of {window} "
                f"leaves room for {max(window - longest, 0)}: lower max_new_tokens or shorten the prompt."
            )
        if request.samples < 1:
            raise UserError(f"the number of samples is {request.samples}: must be at least 1.")
        needed = self._pages(len(request.prompt)) + self._run(request)
        if needed > len(self.pool.holders):
            raise UserError(
                f"the prompt has {len(request.prompt)} tokens; with max_new_tokens={longest} one sample needs "
                f"{needed * self.page_size} tokens of keys and values, and max_kv_tokens holds "
                f"{len(self.pool.holders) * self.page_size}: raise it."
            )
        self._submitted += 1
        self._waiting.append(_Waiting(self._submitted, request, digest_of(request.prompt)))
        return self._submitted

    def cancel(self, request: int, sample: int | None = None) -> None:
        """Draw no more of a request, or of one of its samples; one that has ended already is no matter."""
        gone = [r for r in self._rows if r.source.id == request and sample in (None, r.sample)]
        self._rows = [r for r in self._rows if r not in gone]
        for row in gone:
            self._leave(row)
        if sample is None:
            for waiting in [w for w in self._waiting if w.id == request]:
                self._waiting.remove(waiting)
                self.pool.release(waiting.pages)

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """Draw one token of every running sample, after letting in as many as fit; in order of request and sample."""
        logits = [self._decode()] if self._rows else []
        entered = self._admit()
        if entered:
            logits.append(torch.stack([row.source.logits for row in entered if row.source.logits is not None]))
        self._rows += entered
        if not self._rows:
            return []
        return self._draw(torch.cat(logits))

    def _pages(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def _run(self, request: Request) -> int:
        """Pages of a sample's run; the last token drawn is never run, so never stored.

        A power of two, so that runs of many lengths fill memory without holes, but no more than fits beside the prompt.
        """
        exact, prompt = self._pages(request.sampling.max_new_tokens - 1), self._pages(len(request.prompt))
        rounded = 1 << (exact - 1).bit_length() if exact else 0
        return rounded if prompt + rounded <= len(self.pool.holders) else exact

    def _admit(self) -> list[_Row]:
        """New rows for the samples at the head of the queue, as far as rows and pages go."""
        # A few rows that fall free are filled together: a pass over one short prompt costs nearly what one over many does.
        if self._rows and self.max_rows - len(self._rows) < max(1, self.max_rows // 8):
            return []
        entered: list[_Row] = []
        prompts: list[_Waiting] = []
        while self._waiting and len(self._rows) + len(entered) < self.max_rows:
            head = self._waiting[0]
            size, prompt = self._run(head.request), self._pages(len(head.request.prompt))
            run = self.pool.free_run(size) if size else np.zeros(0, dtype=np.int64)
            if run is None or size + (0 if len(head.pages) else prompt) > self.pool.spare:
                break
            self.pool.hold(run)
            if not len(head.pages):
                head.pages = self.pool.take(prompt)
                prompts.append(head)
            self.pool.hold(head.pages)
            draws = draws_of(head.request.sampling, head.digest, head.started)
            entered.append(_Row(head, head.started, run, draws))
            head.started += 1
            if head.started == head.request.samples:
                self.pool.release(head.pages)  # of the queue's own hold; its samples have theirs
                self._waiting.popleft()
        if entered:
            self._plan = None
            self.storage.clear(self._tensor(np.concatenate([row.run for row in entered])))
        self._prefill(prompts)
        return entered

    def _prefill(self, prompts: list[_Waiting]) -> None:
        """Run prompts and keep the logits after their last tokens, a packed row at a time."""
        batch: list[_Waiting] = []
        tokens = 0
        # Equal lengths side by side share a call.
        for waiting in sorted(prompts, key=lambda w: len(w.request.prompt)):
            if batch and tokens + len(waiting.request.prompt) > _TOGETHER:
                self._prefill_row(batch)
                batch, tokens = [], 0
            batch.append(waiting)
            tokens += len(waiting.request.prompt)
        if batch:
            self._prefill_row(batch)

    def _prefill_row(self, batch: list[_Waiting]) -> None:
        """Run prompts of ascending length, end to end in one row."""
        # Repeated until there are enough rows for every product: what is written twice is the same.
        repeated = batch * -(-_FEWEST_ROWS // len(batch)) if len(batch) < _FEWEST_ROWS else batch
        documents = batch if sum(len(w.request.prompt) for w in batch) >= _FEWEST_ROWS else repeated
        lengths = np.array([len(w.request.prompt) for w in documents])
        position = np.concatenate([np.arange(n) for n in lengths])
        equal = np.split(lengths, np.flatnonzero(np.diff(lengths)) + 1)
        last = np.resize((np.cumsum(lengths) - 1)[: len(batch)], len(repeated))
        tokens = np.concatenate([w.request.prompt for w in documents])
        slots = torch.cat([self._slots_of(w) for w in documents])
        self.storage.clear(self._tensor(np.concatenate([w.pages for w in batch])))
        hidden = self.model(
            self._tensor(tokens)[None],
            self._tensor(position)[None],
            Grouped(tuple((len(lengths), int(lengths[0])) for lengths in equal)),
            Prefill(self.storage, slots),
        )
        for waiting, logits in zip(batch, self.model.logits(hidden[0, self._tensor(last)]), strict=False):
            waiting.logits = logits
        for waiting, end in zip(batch, np.cumsum(lengths).tolist(), strict=False):
            prompt, request = waiting.request.prompt, waiting.request
            if request.scored:
                waiting.scored = score_prompt(self.model, hidden[0, end - len(prompt) : end], prompt, request.alternatives)

    def _slots_of(self, waiting: _Waiting) -> Tensor:
        """Where the positions of a prompt are stored."""
        pages, position = waiting.pages, np.arange(len(waiting.request.prompt))
        if is_whole(len(pages), waiting.request.samples) and in_place(pages) is not None:
            return self.storage.slots(self._tensor(np.full(len(position), pages[0])), self._tensor(position), run=len(pages))
        return self.storage.slots(self._tensor(pages[position // self.page_size]), self._tensor(position % self.page_size))

    def _tensor(self, values: np.ndarray | list[int]) -> Tensor:
        """int64, where the model is."""
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self.storage.keys.device)

    def _decode(self) -> Tensor:
        """Run the tokens that were drawn last: logits of every row, (R, vocab_size)."""
        rows = [*self._rows, *[self._rows[-1]] * (_FEWEST_ROWS - len(self._rows))]
        tokens, positions = self._tensor([r.tokens[-1] for r in rows]), self._tensor([r.position for r in rows])
        reads = [pages_read(len(r.tokens), len(r.run), self.page_size) for r in rows]
        if self._plan is None or reads != self._reads:
            self._plan, self._reads = decode_plan(self.storage, [r.place for r in rows]), reads
        else:
            self._plan.advance()
        hidden = self.model(tokens[:, None], positions[:, None], cache=self._plan)
        return self.model.logits(hidden[:, 0])[: len(self._rows)]

    def _draw(self, logits: Tensor) -> list[Drawn]:
        device = logits.device
        total = logits.logsumexp(-1)
        if not bool(total.isfinite().all()):
            raise UserError("The model's logits are not numbers: its weights are damaged, or overflow in this precision.")
        numbers = torch.tensor([r.draws[len(r.tokens)] for r in self._rows], dtype=torch.float32, device=device)
        settings: dict[tuple[float, float, int], list[int]] = defaultdict(list)
        for i, row in enumerate(self._rows):
            config = row.source.request.sampling
            settings[config.temperature, config.top_p, config.top_k].append(i)
        tokens = torch.empty(len(self._rows), dtype=torch.int64, device=device)
        for (temperature, top_p, top_k), rows in settings.items():
            alike = torch.tensor(rows, device=device)
            tokens[alike] = choose(logits[alike], numbers[alike], temperature, top_p, top_k)
        logprobs = logits.gather(1, tokens[:, None]).squeeze(1) - total
        others = self._others(logits, total)
        drawn, staying = [], []
        for i, (row, token, logprob) in enumerate(zip(self._rows, tokens.tolist(), logprobs.tolist(), strict=True)):
            request, scored = row.source.request, row.source.scored if not row.tokens else ()
            row.tokens.append(token)
            stopped = token in request.stops
            ended = stopped or len(row.tokens) == request.sampling.max_new_tokens
            drawn.append(Drawn(row.source.id, row.sample, token, logprob, ended, stopped, others.get(i, ()), scored))
            if ended:
                self._leave(row)
            else:
                staying.append(row)
        self._rows = staying
        return drawn

    def _others(self, logits: Tensor, total: Tensor) -> dict[int, Alternatives]:
        """What could have been drawn, of the rows that ask for it."""
        counts = {i: row.source.request.alternatives for i, row in enumerate(self._rows) if row.source.request.alternatives}
        if not counts:
            return {}
        asking = [*counts]
        found = likeliest(logits[asking], total[asking], max(counts.values()))
        return {i: of[: counts[i]] for i, of in zip(asking, found, strict=True)}

    def _leave(self, row: _Row) -> None:
        self._plan = None
        self.pool.release(row.source.pages)
        self.pool.release(row.run)
