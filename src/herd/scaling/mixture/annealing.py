"""Annealing appraisal: which candidate source is worth training on, from short runs that anneal a half-trained model on it.

Llama 3, section 3.1.3: the learning rate of a half-trained 8B model goes linearly to 0 on 30% of the candidate and 70% of the
default mix; what the model is then worth, against the default mix alone, appraises the candidate at a fraction of the cost of a
scaling law for each. Runs are paired: by seed (same weights and data order before the annealing), or by held-out document.

By seed: y = mean + candidate + seed + noise, so a seed's luck counts for no candidate, and all candidates together tell the
noise, with (candidates - 1)(seeds - 1) degrees of freedom. By document: a bootstrap that draws the same documents for all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from herd.config.errors import UserError, nearest
from herd.runs.seeds import stream
from herd.runs.stage import Artifact
from herd.scaling.curves.power_law import Interval
from herd.scaling.mixture.records import finished_runs
from herd.scaling.records.raw_tables import read_raw

DEFAULT = "default"  # the name of the runs that keep the default mix
_DRAWS = 4000
_FEWEST_DOCUMENTS = 20


@dataclass(frozen=True)
class Candidate:
    """One candidate's worth."""

    name: str
    status: str  # better | worse (than the default mix, at the confidence asked) | undecided
    loss: float  # mean held-out loss, nats per token
    gain: float  # the default mix's loss less this one
    gain_interval: Interval
    best_probability: float  # that its true loss is the lowest of all, the default mix among them


@dataclass(frozen=True)
class Appraisal:
    """All candidates, the largest gain first."""

    status: str  # ok | undecided (no candidate is told from the default mix)
    reason: str
    pairing: str  # seed | document
    candidates: tuple[Candidate, ...]
    default_loss: float
    noise: float  # by seed: standard deviation of one run, nats; by document: standard error of the default mix's loss
    units: int  # seeds or documents
    confidence: float


def rank_by_seeds(
    losses: Mapping[str, Mapping[int, float]], default: str = DEFAULT, confidence: float = 0.95, seed: int = 0
) -> Appraisal:
    """Rank candidates from runs with several seeds.

    Args:
        losses: candidate -> seed -> held-out loss, nats per token; every candidate with the same seeds, two or more.
        default: name of the runs on the default mix.
        confidence: of the intervals.
        seed: of the draws behind ``best_probability``.

    Raises:
        UserError: no default, other seeds for some candidate, one seed alone, or losses that are not finite.
    """
    names = _names(losses, default)
    seeds = sorted(losses[default])
    for name in names:
        if sorted(losses[name]) != seeds:
            raise UserError(
                f"Candidate '{name}' has seeds {sorted(losses[name])}, '{default}' has {seeds}: run the same for all."
            )
    if len(seeds) < 2:
        raise UserError("One seed cannot tell a candidate from luck: run at least two, or rank by documents.")
    table = _finite(np.array([[losses[name][s] for s in seeds] for name in names]))
    means = table.mean(axis=1)
    residual = table - means[:, None] - table.mean(axis=0) + table.mean()
    freedom = (len(names) - 1) * (len(seeds) - 1)
    noise = math.sqrt(float((residual**2).sum()) / freedom)
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * noise * math.sqrt(2 / len(seeds))
    gains = means[names.index(default)] - means
    rng = stream(seed, "annealing", "seeds")
    spread = noise * np.sqrt(freedom / rng.chisquare(freedom, _DRAWS)) / math.sqrt(len(seeds))
    drawn = means + rng.normal(size=(_DRAWS, len(names))) * spread[:, None]
    intervals = [(float(gain - half), float(gain + half)) for gain in gains]
    return _appraisal("seed", names, default, means, gains, intervals, drawn, noise, len(seeds), confidence)


def rank_by_documents(
    nll: Mapping[str, Sequence[float] | np.ndarray],
    tokens: Sequence[float] | np.ndarray,
    default: str = DEFAULT,
    confidence: float = 0.95,
    seed: int = 0,
) -> Appraisal:
    """Rank candidates from one run each, scored on the same held-out documents.

    The intervals say how the ranking depends on the documents; what another seed would do they do not know.

    Args:
        nll: candidate -> (documents,) summed negative log-likelihoods, nats.
        tokens: (documents,) tokens scored in each.
        default, confidence, seed: as for :func:`rank_by_seeds`.

    Raises:
        UserError: no default, other numbers of documents, fewer than 20 of them, or numbers that are not finite.
    """
    names = _names(nll, default)
    weights = np.asarray(tokens, dtype=float)
    for name in names:
        if np.shape(nll[name]) != weights.shape:
            raise UserError(f"Candidate '{name}' was scored on {np.shape(nll[name])} documents, tokens has {weights.shape}.")
    if len(weights) < _FEWEST_DOCUMENTS or not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(f"A ranking by documents needs at least {_FEWEST_DOCUMENTS} documents with tokens in each.")
    table = _finite(np.array([nll[name] for name in names], dtype=float))
    means = table.sum(axis=1) / weights.sum()
    rng = stream(seed, "annealing", "documents")
    counts = rng.multinomial(len(weights), np.full(len(weights), 1 / len(weights)), size=_DRAWS)
    drawn = (counts @ table.T) / (counts @ weights)[:, None]
    place = names.index(default)
    tail = (1 - confidence) / 2
    ends = np.quantile(drawn[:, place : place + 1] - drawn, [tail, 1 - tail], axis=0)
    intervals = [(float(low), float(high)) for low, high in ends.T]
    gains = means[place] - means
    return _appraisal(
        "document", names, default, means, gains, intervals, drawn, float(drawn[:, place].std()), len(weights), confidence
    )


def annealing_runs(folder: Path, stage: str = "anneal") -> list[tuple[str, int, Artifact]]:
    """Finished runs of an annealing sweep: candidate, seed, result.

    A candidate is named after the sources whose share the annealing raises; the default mix is ``default``.

    Args:
        folder: of the runs, such as ``<run.root>/<run.name>/anneal``.
        stage: of the curriculum that anneals.

    Raises:
        UserError: no runs, a run without the stage, one candidate and seed twice, or runs from different checkpoints.
    """
    found: list[tuple[str, int, Artifact]] = []
    for run, artifact in finished_runs(Path(folder)):
        config = artifact.manifest["config"]
        stages = config["curriculum"]["stages"]
        if stage not in stages:
            raise UserError(f"Run '{run}' in '{folder}' has no curriculum stage '{stage}': it has {', '.join(stages)}.")
        mix = {name: share for name, share in config["mix"]["weights"].items() if share > 0}
        annealed = stages[stage]["mix"] or mix
        raised = [name for name, share in annealed.items() if share > mix.get(name, 0.0) + 1e-6]
        name, number = "+".join(sorted(raised)) or DEFAULT, int(config["seed"])
        if any((name, number) == (other, seed) for other, seed, _ in found):
            raise UserError(f"'{folder}' has candidate '{name}' with seed {number} twice: keep one.")
        found.append((name, number, artifact))
    starts = {str(artifact.manifest["input_addresses"].get("start")) for _, _, artifact in found}
    if len(starts) > 1:
        raise UserError(f"The runs in '{folder}' anneal {len(starts)} different checkpoints: appraise those of one at a time.")
    return found


def gather_seeds(folder: Path, weights: Mapping[str, float] | None = None, stage: str = "anneal") -> dict[str, dict[int, float]]:
    """Losses of the finished runs of an annealing sweep, as :func:`rank_by_seeds` takes them.

    Args:
        folder, stage: as for :func:`annealing_runs`.
        weights: domain -> weight of its held-out loss; by default the run's own mix.

    Raises:
        UserError: as :func:`annealing_runs`, or a weight of a domain that was not scored.
    """
    losses: dict[str, dict[int, float]] = {}
    for name, seed, artifact in annealing_runs(folder, stage):
        scores: Mapping[str, float] = artifact.metrics["loss_by_domain"]
        counted = _counted(artifact, weights, scores)
        losses.setdefault(name, {})[seed] = sum(w * scores[d] for d, w in counted.items()) / sum(counted.values())
    return losses


def gather_documents(
    folder: Path, weights: Mapping[str, float] | None = None, stage: str = "anneal"
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Losses of the held-out documents, as :func:`rank_by_documents` takes them; several seeds of a candidate are averaged.

    Documents are weighed so that each domain counts by its weight, not by how much of it is held out.

    Args:
        folder, weights, stage: as for :func:`gather_seeds`.

    Returns:
        candidate -> (documents,) weighed negative log-likelihoods; (documents,) weighed tokens.

    Raises:
        UserError: as :func:`gather_seeds`, runs without ``heldout_documents.csv``, or scored on different documents.
    """
    sums: dict[str, list[np.ndarray]] = {}
    scored: tuple[tuple[str, str, str], ...] | None = None
    scale, tokens = np.ones(0), np.ones(0)
    for name, _, artifact in annealing_runs(folder, stage):
        path = artifact.path / "heldout_documents.csv"
        if not path.is_file():
            raise UserError(f"'{artifact.path}' has no {path.name}: train the sweep with eval_documents=true, or pair by seeds.")
        raw = read_raw(str(path))
        own = tuple((row["domain"], row["document"], row["tokens"]) for row in raw.rows)
        if scored is None:
            scored, tokens = own, np.array([float(row[2]) for row in own])
            domains = np.array([row[0] for row in own])
            totals = {str(d): float(tokens[domains == d].sum()) for d in np.unique(domains)}
            counted = _counted(artifact, weights, totals)
            scale = np.array([counted.get(str(d), 0.0) / totals[str(d)] for d in domains])
        if own != scored:
            raise UserError(f"The runs in '{folder}' were scored on different documents: their losses do not compare.")
        sums.setdefault(name, []).append(np.array([float(row["nll"]) for row in raw.rows]))
    kept = scale > 0
    return {name: (np.mean(runs, axis=0) * scale)[kept] for name, runs in sums.items()}, (tokens * scale)[kept]


def _counted(artifact: Artifact, weights: Mapping[str, float] | None, scored: Mapping[str, float]) -> dict[str, float]:
    """Domain -> weight above 0; UserError for a domain that was not scored."""
    counted = weights or artifact.manifest["config"]["mix"]["weights"]
    counted = {domain: weight for domain, weight in counted.items() if weight > 0}
    unknown = next((domain for domain in counted if domain not in scored), None)
    if unknown is not None:
        raise UserError(f"weights: run '{artifact.path}' was not scored on '{unknown}'.{nearest(unknown, scored)}")
    return counted


def _appraisal(
    pairing: str,
    names: list[str],
    default: str,
    means: np.ndarray,
    gains: np.ndarray,
    intervals: list[Interval],
    drawn: np.ndarray,
    noise: float,
    units: int,
    confidence: float,
) -> Appraisal:
    """Candidates by gain; ``drawn`` (R, candidates) are samples of their losses."""
    best = np.bincount(drawn.argmin(axis=1), minlength=len(names)) / len(drawn)
    candidates = []
    for i in np.argsort(-gains, kind="stable"):
        if names[i] == default:
            continue
        low, high = intervals[i]
        status = "better" if low > 0 else "worse" if high < 0 else "undecided"
        candidates.append(Candidate(names[i], status, float(means[i]), float(gains[i]), (low, high), float(best[i])))
    told = any(candidate.status != "undecided" for candidate in candidates)
    reason = "" if told else f"every gain's {confidence:.0%} interval holds 0: add {pairing}s or anneal longer"
    place = names.index(default)
    return Appraisal(
        "ok" if told else "undecided", reason, pairing, tuple(candidates), float(means[place]), noise, units, confidence
    )


def _names(losses: Mapping[str, object], default: str) -> list[str]:
    if default not in losses:
        raise UserError(f"No runs of the default mix '{default}'.{nearest(default, losses)} There are: {', '.join(losses)}.")
    if len(losses) < 2:
        raise UserError("An appraisal needs at least one candidate beside the default mix.")
    return sorted(losses)


def _finite(table: np.ndarray) -> np.ndarray:
    if not np.isfinite(table).all():
        raise UserError("A run has a loss that is not finite: leave its candidate out, or train it again.")
    return table
