"""Stage `curate`: raw records -> documents of four domains, split, with a reason for every decision.

The order is the paper's (section 3.1.1): URL, documents, lines, heuristics, model-based quality; then the held-out split. How
the work is divided: :mod:`herd.curation.pipeline`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.config.loader import to_plain
from herd.curation.blocklists import KINDS
from herd.curation.config import CurateConfig
from herd.curation.documents import DOMAINS
from herd.curation.executors import Executor, make_executor
from herd.curation.ledger import LedgerRow
from herd.curation.mix import downsampling_report, keep_rates, mix_report
from herd.curation.pipeline import decide, extract, gather, index, lines, measure, split, words, write
from herd.curation.pipeline.tasks import Phase, Result, Work, explained, merged, run_phase, run_phases
from herd.curation.sources import Context, content_hashes, list_shards, load_sources, nothing_found
from herd.runs.atomic import write_json
from herd.runs.stage import Artifact, Inputs, Stage, StageRun

# Keys that may differ when stored scores are decided again: those that decide after measuring, and the source, which is not read.
_DECIDING = {"rethreshold", "workers", "executor", "source", "classifier.drop_share"}
_DECIDING |= {f"rules.{domain}" for domain in DOMAINS}
_DECIDING |= {
    "route",
    "downsampling",
    "weights",
    "split.share",
    "split.min_documents",
    "split.overlap_words",
    "split.max_overlap",
}


def run(config: CurateConfig, inputs: Inputs, run: StageRun) -> dict[str, Any]:
    """Write documents, scores, entries, ledger and funnel into ``run.folder``; return the stage's metrics."""
    earlier = inputs.get("documents")
    if earlier is not None and not config.rethreshold:
        raise UserError("inputs.documents is for rethreshold=true, which decides again from the scores stored there.")
    if config.rethreshold:
        _check(config, earlier)
    work = Work(config, run.scratch, run.folder, run.folder if earlier is None else earlier.path)
    try:
        with make_executor(config.executor, config.workers, run.scratch / "slurm") as executor:
            if earlier is None:
                _measure(executor, work)
            else:
                _copy_scores(work)
            return _decide(executor, work)
    except OSError as error:
        raise explained(error, run.folder) from error


def _measure(executor: Executor, work: Work) -> None:
    """Everything up to the scores; what it found goes into ``measured/summary.json``."""
    config, partitions = work.config, [(p,) for p in range(work.config.partitions)]
    (work.scratch / "source").mkdir(parents=True, exist_ok=True)
    shards = sorted(
        list_shards(config.source, Context(config.seed, config.workers, work.scratch / "source")), key=lambda s: s.key
    )
    n = len(shards)
    found = run_phase(executor, work, "extract", extract.extract, list(enumerate(shards)), "extracting text")
    documents_in = sum(result["documents"] for result in found)
    if not documents_in:
        first = next((result["first_problem"] for result in found if result["first_problem"]), None)
        raise nothing_found(config.source, first and LedgerRow(first[0], "collect", "dropped", "", detail=first[1]))
    indexed = run_phase(executor, work, "index", index.index, [(n,)], "finding copies")[0]
    run_phase(executor, work, "gather", gather.gather, [(*p, n) for p in partitions], "gathering documents")
    names = measure.to_fit(config)
    phases: list[Phase] = [("fit", measure.fit, [(name,) for name in names])]  # the longest first
    phases += [("lines", lines.count, partitions)] if config.dedup.lines else []
    phases += [("words", words.count_words, partitions)] if config.kl.enabled else []
    fitted = dict(zip(names, run_phases(executor, work, phases, "counting lines and words")[0], strict=True))
    removed: list[Result] = []
    if config.dedup.lines:
        removed = run_phase(executor, work, "frequent", lines.merge, [(*p, len(partitions)) for p in partitions], "merging lines")
    measured = run_phase(executor, work, "measure", measure.measure_partition, partitions, "measuring")
    problems = write.write_problems(work, n)["problems"]
    write.write_removed_lines(work)
    write.write_raw_entries(work, n)
    (work.measured / "measured" / "links.parquet").write_bytes(work.file("index", "links.parquet").read_bytes())

    raw = sum(result["raw_characters"] for result in found)
    refused = merged(found, "dropped")
    line_dropped, bad_lines = (merged([m["dropped"] for m in measured], stage) for stage in ("line", "quality"))
    size = {name: sum(m[f"line_{name}"] for m in measured) for name in ("documents", "characters")}
    funnel = [
        _step("collected", {"documents": documents_in, "characters": raw}, problems),
        _step("extract", indexed["extract"], refused),
        _step("url", indexed["url"], {"duplicate_url": indexed["duplicate_url"]}),
        _step("document", indexed["document"], {"near_duplicate": indexed["near_duplicate"]}),
        _step("line", size, line_dropped),
    ]
    metrics = {
        "documents_in": documents_in,
        "source_problems": sum(problems.values()),
        "pairs_compared": indexed["pairs_compared"],
        "lines_removed": sum(result["copies"] for result in removed),
        "classifier": fitted.get("quality", {}).get("report", {}),
        "classifiers": {name: fitted[name]["report"] for name in names if name != "quality"},
    }
    summary = {"funnel": funnel, "metrics": metrics, "only_bad_lines": bad_lines}
    write_json(work.measured / "measured" / "summary.json", summary)


def _decide(executor: Executor, work: Work) -> dict[str, Any]:
    """Decisions from the scores, the split, and everything that leaves the stage."""
    partitions = [(p,) for p in range(work.config.partitions)]
    summary = json.loads((work.measured / "measured" / "summary.json").read_text(encoding="utf-8"))
    funnel, metrics = summary["funnel"], summary["metrics"]
    ruled = run_phase(executor, work, "rules", decide.apply_rules, partitions, "applying rules")
    dropped = merged([*ruled, {"dropped": summary["only_bad_lines"]}], "dropped")
    funnel.append(_step("quality", _size(ruled), dropped))
    limit = decide.threshold(work)
    chosen = run_phase(
        executor, work, "choose", decide.choose, [(*p, limit.get("threshold")) for p in partitions], "applying scores"
    )
    if limit:
        metrics["classifier"] |= limit | {"dropped": sum(merged(chosen, "dropped").values())}
        funnel.append(_step("classifier", _size(chosen), merged(chosen, "dropped")))
    mixed_sizes: dict[str, dict[str, float]] = {}
    for source, size in merged(chosen, "languages").items():
        domain, _, language = source.partition("/")
        mixed_sizes.setdefault(domain, {})[language] = size
    metrics["mix"] = mix_report(mixed_sizes, work.config.weights)  # characters stand for tokens
    if work.config.downsampled:
        unit = work.config.downsampling.unit
        amounts = merged([result["classes"] for result in chosen], unit)
        rates = keep_rates(amounts, work.config.downsampling)
        mixed = run_phase(executor, work, "mix", decide.downsample, [(*p, rates) for p in partitions], "sampling classes down")
        metrics["downsampling"] = downsampling_report(amounts, rates, work.config.downsampling)
        funnel.append(_step("mix", _size(mixed), merged(mixed, "dropped")))
    if run_phase(executor, work, "split", split.hold_out, [()], "choosing held-out documents")[0]["train"] == 0:
        raise UserError("No document is left for training: loosen rules.* or give more data (see funnel and ledger).")
    run_phase(executor, work, "separate", split.separate, partitions, "hashing words")
    split.cut_overlaps(executor, work)
    written = run_phase(executor, work, "write", write.write_partition, partitions, "writing documents")
    entries = run_phase(executor, work, "entries", write.write_entries, [()], "collecting documented functions")[0]
    for name, target in (("problems.parquet", "ledger/problems.parquet"), ("removed_lines.parquet", "removed_lines.parquet")):
        shutil.copyfile(work.measured / "measured" / name, work.folder / target)

    documents, characters, languages = (Counter(merged(written, name)) for name in ("documents", "characters", "languages"))
    total = {"documents": sum(documents.values()), "characters": sum(characters.values())}
    funnel.append(_step("split", total, merged(written, "dropped")))
    write_json(work.folder / "funnel.json", funnel)

    def by_domain(counts: Mapping[str, int], *splits: str) -> dict[str, int]:
        return {d: sum(counts.get(f"{s}/{d}", 0) for s in splits) for d in DOMAINS}

    return metrics | {
        "documents_out": total["documents"],
        "characters_out": total["characters"],
        "documents_by_domain": by_domain(documents, *write.SPLITS),
        "characters_by_domain": by_domain(characters, *write.SPLITS),
        "heldout_documents_by_domain": by_domain(documents, "heldout"),
        "heldout_characters_by_domain": by_domain(characters, "heldout"),
        "languages": dict(sorted(languages.items())),
        "entries": entries["entries"],
        "entries_left_out": entries["left_out"],
    }


def _step(name: str, left: Mapping[str, int], dropped: Mapping[str, int]) -> dict[str, Any]:
    """One step of the funnel: what is left after it, and what it dropped, by rule."""
    gone = {rule: count for rule, count in sorted(dropped.items()) if count}
    return {"step": name, "documents": left["documents"], "characters": left["characters"], "dropped": gone}


def _size(results: list[Result]) -> dict[str, int]:
    return {name: sum(result[name] for result in results) for name in ("documents", "characters")}


def _check(config: CurateConfig, earlier: Artifact | None) -> None:
    """Refuse to decide again where the scores would be others."""
    if earlier is None:
        raise UserError(
            "rethreshold=true needs inputs.documents=FOLDER, a finished `herd curate` whose scores are decided again."
        )
    if not (earlier.path / "measured" / "summary.json").exists():
        first = (earlier.manifest.get("inputs") or {}).get("documents", "")
        hint = f": it was itself decided from {first}; give that one" if first else ""
        raise UserError(f"inputs.documents: '{earlier.path}' holds no measured documents{hint}.")
    key = _difference(to_plain(config), earlier.manifest["config"], "")
    if key:
        raise UserError(
            f"rethreshold=true decides again from stored scores, which depend on '{key}': it is another than in {earlier.path}. "
            "Give the same value, or run without rethreshold."
        )


def _difference(ours: Any, theirs: Any, key: str) -> str:
    """The first key, by name, that differs and matters for the scores; "" if none."""
    if key in _DECIDING:
        return ""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.get("enabled") is False and theirs.get("enabled") is False:
            return ""  # what is off measures nothing, whatever its other values
        parts = (_difference(ours.get(k), theirs.get(k), f"{key}.{k}" if key else k) for k in sorted(ours.keys() | theirs.keys()))
        return next((found for found in parts if found), "")
    return "" if ours == theirs else key


def _copy_scores(work: Work) -> None:
    """The scores belong to the result, wherever they were measured."""
    (work.folder / "scores").mkdir(exist_ok=True)
    for path in sorted((work.measured / "scores").glob("*.parquet")):
        shutil.copyfile(path, work.folder / "scores" / path.name)


def fingerprint(config: CurateConfig) -> dict[str, Any]:
    """What the result depends on outside the configuration: versions of what is read, or the content of the user's files."""
    if config.rethreshold:
        return {}  # nothing is read but the input
    found: dict[str, Any] = load_sources().get(config.source.kind).fingerprint(config.source)
    lists = config.blocklists
    files = {"reference": config.classifier.reference if config.classifier.enabled else ""}
    files |= {f"dirty_words.{language}": name for language, name in config.dirty_words.files.items()}
    files |= {f"blocklists.{kind}.{i}": name for kind in KINDS for i, name in enumerate(getattr(lists, kind))}
    files |= {f"classifiers.{name}": task.examples for name, task in config.active_classifiers.items()}
    return found | {key: content_hashes(Path(name)) for key, name in files.items() if name and Path(name).exists()}


STAGE = Stage(
    name="curate",
    version=3,
    config=CurateConfig,
    run=run,
    fingerprint=fingerprint,
    execution=("workers", "executor"),
    summary="raw pages -> deduplicated, filtered documents of four domains",
    optional=("documents",),
)
