"""Models that the tests of probing share."""

import sys
from pathlib import Path

import pytest

from probing.made import make

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """Gives the folder of a small model of a kind."""
    made = {}

    def give(kind, *, head=False):
        if (kind, head) not in made:
            folder = tmp_path_factory.mktemp("models") / f"{kind}{'-head' if head else ''}"
            made[kind, head] = make(kind, folder, head=head)
        return made[kind, head]

    return give


@pytest.fixture(scope="session")
def stories(data):
    """The folder of a real small causal model."""
    return str(data / "stories260K")
