"""Parts that are frozen, unfrozen or added while two processes train: both do the same, by the wrapper or by hand."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).parent / "changing.py"

pytestmark = pytest.mark.xdist_group("processes")


def test_what_is_trained_may_change(tmp_path):
    folder = tmp_path / "all"
    launch(SCRIPT, folder, processes=2).check()
    first, second = (json.loads(Path(f"{folder}-rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for wrapped, bare in first.values():
        assert bare == pytest.approx(wrapped, abs=1e-6)
