"""Helpers of the curation tests."""

import functools
from pathlib import Path

import pytest

from herd.config.loader import compose, load
from herd.curation.config import CurateConfig
from herd.curation.pipeline.gather import FACTS, texts_schema
from herd.curation.pipeline.tasks import Work
from herd.runs.tables import TableWriter


@functools.cache
def config_of(*overrides: str) -> CurateConfig:
    """`herd curate` with these overrides."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(compose("curate", overrides), resolve=True)
    return load(CurateConfig, {name: tree[name] for name in tree if name not in ("run", "inputs")})


def work_in(folder: Path, *overrides: str) -> Work:
    """What tasks are given, in an empty folder."""
    return Work(config_of("workers=1", *overrides), folder / "scratch", folder, folder)


def write_gathered(work: Work, documents: list[dict], partition: int = 0) -> None:
    """A partition as phase `gather` leaves it; missing facts are filled in."""
    rows = []
    for document in sorted(documents, key=lambda d: d["id"]):
        facts = {**dict.fromkeys(FACTS, ""), "language": "en", "domain": "general", "media": "text", "bucket": 0, "position": 0}
        rows.append(facts | document)
    with TableWriter(work.part("gather", partition, ".parquet"), texts_schema()) as table:
        table.write_rows(rows)


@pytest.fixture(scope="session")
def configure():
    """Factory: a configuration."""
    return config_of


@pytest.fixture(scope="session")
def make_work():
    """Factory: what tasks are given."""
    return work_in


@pytest.fixture(scope="session")
def gathered():
    """Writer of a partition's documents."""
    return write_gathered
