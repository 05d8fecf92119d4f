"""Two real processes: what they hold after trainings that end in all ways, and that they carry on alike."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).parent / "ends.py"

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What was printed, and what each process saw."""
    folder = tmp_path_factory.mktemp("ends")
    ran = launch(SCRIPT, folder, processes=2).check()
    return ran, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_groups_threads_and_descriptors_end_with_a_training(launched):
    for own in launched[1]:
        assert [end[0] for end in own["ends"]] == [
            "by itself",
            "ArithmeticError",
            "KeyboardInterrupt",
            "SystemExit",
            "LookupError",
            "ArithmeticError",
            "by itself",
            "by itself",
        ]
        assert {end[1] for end in own["ends"]} == {1}, own["ends"]  # the main group, which is kept
        assert len({tuple(end[2:]) for end in own["ends"]}) == 1, own["ends"]
        assert own["last"] is False


def test_a_callback_that_evaluates_changes_nothing(launched):
    for own in launched[1]:
        (without, with_it), values = own["evaluated"]
        assert without == with_it
        assert len(values) == 4
        assert len(set(values)) > 1
    assert launched[1][0]["evaluated"] == launched[1][1]["evaluated"]


def test_the_loop_does_not_wait_for_what_is_still_being_written(launched):
    for own in launched[1]:
        calls, blocked = own["blocked"]
        assert calls >= 1
        assert blocked == 0
    assert launched[1][0]["blocked"] == launched[1][1]["blocked"]


def test_a_warning_is_printed_once_and_all_carry_on(launched):
    """Whatever Python's filters of warnings say."""
    ran, seen = launched
    assert [own["warned"] for own in seen] == [[4, 1]] * 2
    said = "warning: no checkpoint at step 2: OSError: [Errno 28] No space left on device"
    assert ran.stdout.count("no checkpoint at step") == ran.stdout.count(said) == 1
