"""Lets the tests of this room import the stand-ins of theirs and of training, and gives them a table of documented functions."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "training")]


@pytest.fixture
def documents(tmp_path):
    from documented import documents_in

    return documents_in(tmp_path / "documents")
