"""The fault suite: every case counts its tries. `--full` makes as many as docs/faults.md tells of."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("forks", "trials")

from forks import Forks
from tallies import Tally, write_counts


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


@pytest.fixture
def tally(request):
    """case, small, full, hits -> the tries of a case: see tallies.py. A test may have several, one after another."""
    begun: list[Tally] = []
    folder = request.config.getoption("--counts")

    def begin(case: str, *, small: int, full: int, hits: float | None = None) -> Tally:
        begun.append(Tally(case, full if request.config.getoption("--full") else small, hits))
        return begun[-1]

    yield begin
    for number, counted in enumerate(begun):
        if folder is not None and counted.attempts:
            indices = getattr(request.node, "callspec", None)
            order = [request.node.location[1], *(indices.indices.values() if indices else ()), number]
            name = hashlib.sha256(f"{request.node.nodeid} {number}".encode()).hexdigest()[:16]
            write_counts(Path(folder), name, {"module": request.path.stem, "order": order}, counted)
        assert counted.is_over or not request.node.stash.get(_PASSED, False), f"{counted.case}: not all was tried"


_PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture(scope="session")
def forks():
    """Starts trainings of trainings.py in processes of their own, quickly: see forks.py."""
    server = Forks()
    yield server
    server.close()
