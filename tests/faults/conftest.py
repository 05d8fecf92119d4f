"""The fault suite: every case counts its tries. `--full` makes as many as docs/explanation/faults.md tells of."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
from forks import Forks

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("harmful", "trials")

from tallies import Tally, write_counts  # noqa: E402
from trials import Trial  # noqa: E402


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
    server = Forks(Path(__file__).with_name("trainings.py"))
    yield server
    server.close()


@pytest.fixture
def trial(forks, tmp_path):
    """Arguments of the training -> a new trial, in a folder of its own."""
    numbers = itertools.count()
    return lambda **arguments: Trial(forks, tmp_path / str(next(numbers)), **arguments)


@pytest.fixture
def expected(trial):
    """What a training that keeps all its checkpoints ends with, if nothing happens to it."""
    return trial(multiple_checkpoints=True).finish()


@pytest.fixture
def cut_short(trial):
    """-> such a training whose process was killed after its fourth checkpoint; it is copied, not trained each time."""
    original = trial(multiple_checkpoints=True)
    assert original.start({"kind": "die after checkpoint", "number": 4}).end() == -9

    def copy():
        copied = trial(multiple_checkpoints=True)
        shutil.copytree(original.path, copied.path)
        return copied

    return copy


@pytest.fixture
def payload(tmp_path):
    """What would leave a mark if it was unpickled; after the test there must be none."""

    class Payload:
        mark = tmp_path / "executed"

        def __reduce__(self):
            return (os.mkdir, (str(self.mark),))

    payload = Payload()
    pickle.loads(pickle.dumps(payload))
    assert payload.mark.is_dir(), "the payload would not be noticed"
    payload.mark.rmdir()
    yield payload
    assert not payload.mark.exists(), "a payload was executed"
