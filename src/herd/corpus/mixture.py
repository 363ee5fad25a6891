"""Which tokens are in which row: a pure function of (seed, phase, row number), however many workers ask and how.

Each row comes from one source. Rows are dealt so that, at every point of a phase, each source has had its share within
a row or so. The rows of a source cover its stream of documents one after another, through all phases, so no token is
seen twice before the source has been read once; within a phase and an epoch they come in a shuffled order.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from herd.config.errors import UserError, nearest
from herd.corpus.epochs import DocumentStream
from herd.corpus.packing import PackedRows, RowArrays, bytes_of, cut_rows
from herd.corpus.permutation import Permutation
from herd.corpus.shards import TokenShards

MAX_ROWS = 2**32 - 1  # rows of one phase: shares are exact in 64-bit integers up to here
_TOLERANCE = 1e-6


def check_weights(weights: Mapping[str, float], where: str) -> None:
    """Refuse weights that are negative, not finite, or do not sum to 1 (UserError, naming ``where``)."""
    bad = {name: weight for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)}
    if bad:
        raise UserError(f"{where}: weights must be 0 or more, not {bad}.")
    total = math.fsum(weights.values())
    if abs(total - 1) > _TOLERANCE:
        raise UserError(f"{where}: weights sum to {total:.6g}, not 1 ({dict(weights)}): give each source its share of 1.")


@dataclass(frozen=True)
class MixConfig:
    """Shares of the token sources (domains)."""

    weights: dict[str, float]  # domain -> share of the tokens; they sum to 1
    absent: Literal["refuse", "rescale"] = "refuse"  # a domain without tokens: an error, or its share goes to the others
    # Most passes over the tokens of a domain in the whole run; more is refused, 0 = no limit. Up to 4 are worth nearly as much
    # as new text, and 16 add little (Muennighoff et al. 2023, arXiv 2305.16264).
    max_epochs: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self.weights, "mix.weights")
        if not (math.isfinite(self.max_epochs) and self.max_epochs >= 0):
            raise UserError(f"mix.max_epochs = {self.max_epochs}: a number of 0 or more is needed (0 = no limit).")

    def over(self, weights: Mapping[str, float], available: Collection[str]) -> dict[str, float]:
        """``weights``, of this mix or of a stage's own, over the ``available`` domains; as they are unless ``absent`` is rescale.

        Raises:
            UserError: no domain with weight is available.
        """
        if self.absent == "refuse":
            return dict(weights)
        left = {name: weight for name, weight in weights.items() if name in available and weight > 0}
        if weights and not left:
            raise UserError(
                f"The mix {dict(weights)} gives no weight to what there is: {', '.join(sorted(available)) or 'nothing'}."
            )
        total = math.fsum(left.values())
        return {name: weight / total for name, weight in left.items()}


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one row length and one mix."""

    rows: int  # rows in the whole phase
    seq_len: int  # tokens in a row
    weights: dict[str, float]  # domain -> share of the rows; they sum to 1

    def __post_init__(self) -> None:
        if not 0 <= self.rows <= MAX_ROWS or self.seq_len < 1:
            raise UserError(f"A phase needs 0 to {MAX_ROWS:,} rows of 1 token or more, not {self.rows} of {self.seq_len}.")
        check_weights(self.weights, "phase")


class Quota:
    """Deals rows to sources by share, as evenly as whole rows allow; known for any row without dealing those before.

    Of the first n rows the largest source gets floor(n w + 1/2); the others share the rest by the same rule, one after
    another. So the first is never more than half a row from its share, and with the paper's four domains no source is a
    whole row off. Shares are 32-bit fractions, so all is exact integer arithmetic.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        positive = sorted((name for name in weights if weights[name] > 0), key=lambda n: (-weights[n], n))
        self.names: tuple[str, ...] = tuple(positive)
        rest = [math.fsum(weights[n] for n in positive[i:]) for i in range(len(positive))]
        self._shares = [round(weights[n] / rest[i] * 2**32) for i, n in enumerate(positive)]
        assert self._shares[-1] == 2**32  # the last takes what is left

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """(n,) row numbers -> (n, sources): how many of the rows before each belong to each source."""
        rest = rows.astype(np.uint64)
        taken = []
        for share in self._shares:
            mine = (rest * np.uint64(share) + np.uint64(2**31)) >> np.uint64(32)
            taken.append(mine)
            rest = rest - mine
        return np.stack(taken, axis=-1).astype(np.int64)


class Mixture:
    """Rows of a mix of sources over several phases.

    Args:
        shards: token shards.
        split: ``"train"`` or ``"heldout"``.
        phases: one after another; each continues every source where the last one left it.
        seed: decides the order of documents within each source.

    Raises:
        UserError: a phase gives weight to a source that does not exist or has no tokens.
    """

    def __init__(self, shards: TokenShards, split: str, phases: Sequence[Phase], seed: int) -> None:
        self.split, self.phases, self.seed = split, tuple(phases), seed
        available = shards.domains(split)
        wanted = sorted({name for phase in phases for name, weight in phase.weights.items() if weight > 0})
        for name in wanted:
            if name not in available:
                raise UserError(
                    f"The mix gives weight to '{name}', of which '{shards.folder}' has no tokens in split '{split}'."
                    f"{nearest(name, available)} It has {', '.join(available) or 'none'}: "
                    "mix.absent=rescale gives its share to the others."
                )
        self._streams = {name: DocumentStream(shards.source(split, name), seed) for name in wanted}
        self._quotas = [Quota(phase.weights) for phase in phases]
        # Tokens of each source used before phase p; one more entry than phases.
        self._used: list[dict[str, int]] = [dict.fromkeys(wanted, 0)]
        for phase, quota in zip(self.phases, self._quotas, strict=True):
            counts = quota.counts(np.array([phase.rows]))[0].tolist()
            added = {name: n * phase.seq_len for name, n in zip(quota.names, counts, strict=True)}
            self._used.append({name: used + added.get(name, 0) for name, used in self._used[-1].items()})

    def rows(self, phase: int, first: int, count: int, wanted: Sequence[int] | None = None) -> PackedRows:
        """Rows ``first`` to ``first + count`` of a phase, or those of them in the places ``wanted`` (rising, from 0); IndexError
        outside the phase.
        """
        seq_len = self.phases[phase].seq_len
        chosen = np.arange(count) if wanted is None else np.array(wanted, dtype=np.int64)
        shape = (len(chosen), seq_len)
        tokens, targets, positions = (np.empty(shape, dtype=np.int64) for _ in range(3))
        lengths: list[tuple[int, ...]] = [()] * len(chosen)
        sources, sizes = [""] * len(chosen), [0] * len(chosen)
        for name, places, arrays, _ in self._parts(phase, first, count, chosen):
            tokens[places], targets[places], positions[places] = arrays.tokens, arrays.targets, arrays.positions
            size = bytes_of(arrays.targets, self._streams[name].source.token_bytes)
            for place, length, n_bytes in zip(places.tolist(), arrays.lengths(), size, strict=True):
                lengths[place], sources[place], sizes[place] = length, name, n_bytes
        return PackedRows(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy(positions),
            tuple(lengths),
            tuple(sources),
            tuple(sizes),
        )

    def figures(self, phase: int, first: int, count: int) -> tuple[int, int]:
        """(targets, sum of the squared ``lengths``) of :meth:`rows`, from where documents begin alone: no token is read."""
        seq_len = self.phases[phase].seq_len
        targets, squares = count * seq_len, 0
        for name, _, begins in self._dealt(phase, first, count):
            rows, places = self._streams[name].starts(begins, seq_len + 1)
            targets -= int((places > 0).sum())  # the token before a document's first has no target
            inside = (places > 0) & (places < seq_len)
            edges = np.concatenate((rows[inside] * seq_len + places[inside], np.arange(len(begins) + 1) * seq_len))
            squares += int(np.square(np.diff(np.sort(edges))).sum())
        return targets, squares

    def documents_of(self, phase: int, first: int, count: int) -> tuple[tuple[str, ...], ...]:
        """Per row of :meth:`rows`: the id of the document behind each entry of ``lengths``."""
        found: list[tuple[str, ...]] = [()] * count
        for name, places, arrays, documents in self._parts(phase, first, count):
            ids = self._streams[name].source.ids
            for place, starts, owners in zip(places.tolist(), arrays.starts, documents, strict=True):
                found[place] = tuple(ids[i] for i in owners[starts].tolist())
        return tuple(found)

    def epochs(self) -> dict[str, float]:
        """Passes over each source in all phases together; below 1 some of it is never read."""
        return {name: self._used[-1][name] / stream.epoch_tokens for name, stream in self._streams.items()}

    def tokens(self) -> dict[str, int]:
        """Tokens of each source in all phases together."""
        return dict(self._used[-1])

    def _parts(
        self, phase: int, first: int, count: int, wanted: np.ndarray | None = None
    ) -> list[tuple[str, np.ndarray, RowArrays, np.ndarray]]:
        """Per source in the asked rows: name, places in the batch (n,), rows, document of each token (n, T)."""
        seq_len, parts = self.phases[phase].seq_len, []
        for name, places, begins in self._dealt(phase, first, count):
            if wanted is not None:
                mine = np.isin(places, wanted)
                places, begins = np.searchsorted(wanted, places[mine]), begins[mine]
            if len(places):
                spans = self._streams[name].read(begins, seq_len + 1)
                parts.append((name, places, cut_rows(spans.tokens.astype(np.int64), spans.starts), spans.documents[:, :-1]))
        return parts

    def _dealt(self, phase: int, first: int, count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Per source in the asked rows: name, places in the batch (n,), where each row begins in the source's stream (n,)."""
        spec, quota = self.phases[phase], self._quotas[phase]
        if count < 0 or first < 0 or first + count > spec.rows:
            raise IndexError(f"phase {phase} has {spec.rows} rows, asked for {first} to {first + count}")
        before = quota.counts(np.arange(first, first + count + 1))
        for k, name in enumerate(quota.names):
            places = np.flatnonzero(np.diff(before[:, k]))
            if len(places):
                yield name, places, self._begins(phase, name, int(before[0, k]) + np.arange(len(places)))

    def _begins(self, phase: int, name: str, rows: np.ndarray) -> np.ndarray:
        """(n,) numbers of a source's rows within a phase -> (n,) where each begins in the source's stream.

        Neighbours in the stream are pieces of one document, of one step otherwise. So the rows that an epoch fills are dealt in
        a shuffled order; one that reaches into the next epoch keeps its place, and so no token comes before its turn.
        """
        used, length, epoch_tokens = self._used[phase][name], self.phases[phase].seq_len, self._streams[name].epoch_tokens
        total = (self._used[phase + 1][name] - used) // length
        epochs = (used + rows * length) // epoch_tokens
        begins = rows.copy()
        for epoch in np.unique(epochs).tolist():
            low = max(0, -((used - epoch * epoch_tokens) // length))  # its first row, and the first that it does not fill
            high = min(total, ((epoch + 1) * epoch_tokens - used) // length)
            inside = (rows >= low) & (rows < high)
            if inside.any():
                order = Permutation.of(high - low, self.seed, "row order", name, phase, epoch)
                begins[inside] = low + order(rows[inside] - low)
        return used + begins * length


def check_repetition(mixture: Mixture, max_epochs: float) -> None:
    """UserError when a source is passed over more than ``max_epochs`` times (0 = no limit), naming the worst."""
    epochs = mixture.epochs()
    worst = max(epochs, key=lambda name: epochs[name])
    if max_epochs and epochs[worst] > max_epochs:
        raise UserError(
            f"The run would pass over '{worst}' {epochs[worst]:.3g} times, and mix.max_epochs is {max_epochs:g}: lower its "
            "weight in the mix, train on fewer tokens, curate more of it, or raise mix.max_epochs."
        )
