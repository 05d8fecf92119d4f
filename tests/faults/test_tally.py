"""The harness itself: it counts, it fails where it has to, and its page shows what was counted."""

import json

import pytest
import report
from tallies import Tally, write_counts


def counted(tries=4, hits=None, lose=(), hit=()):
    tally = Tally("a case", tries, hits)
    for attempt in tally:
        with attempt:
            attempt.plan = f"plan {attempt.number}"
            if attempt.number in hit:
                attempt.hit()
            assert attempt.number not in lose, "gone"
    return tally


def test_all_survived():
    assert counted().to_json() == {
        "case": "a case",
        "tries": 4,
        "hits": None,
        "survived": 4,
        "lost": 0,
        "complete": True,
    }


def test_a_lost_one_fails_the_test_at_the_end_and_says_what_was_planned():
    with pytest.raises(pytest.fail.Exception) as caught:
        counted(lose=(1, 2))
    text = str(caught.value)
    assert text.startswith("a case: lost 2 of 4\ntry 1 (plan 1): AssertionError: gone")
    assert "try 2 (plan 2)" in text


@pytest.mark.parametrize(("hit", "enough"), [((0, 1), True), ((3,), False), ((), False)])
def test_too_few_hits_prove_nothing(hit, enough):
    if enough:
        assert counted(hits=0.5, hit=hit).to_json()["hits"] == len(hit)
        return
    with pytest.raises(pytest.fail.Exception, match=f"only {len(hit)} of 4 hit their moment, and 50% have to"):
        counted(hits=0.5, hit=hit)


def test_a_skip_and_an_interruption_are_no_lost_tries():
    for error in (pytest.skip.Exception("here not"), KeyboardInterrupt()):
        attempt = next(iter(Tally("a case", 2)))
        with pytest.raises(type(error)), attempt:
            raise error


def test_chance_is_the_same_each_time_and_another_one_for_each_try():
    draws = [[attempt.chance.random() for attempt in Tally("a case", 3)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 3


def test_the_page(tmp_path):
    """In the order of the files and of the cases in them, whatever the order in which they were written."""
    write_counts(tmp_path, "b", {"module": "test_damage", "order": [5, 0]}, counted(tries=3))
    write_counts(tmp_path, "a", {"module": "test_kills", "order": [50, 0]}, counted(tries=2))
    write_counts(tmp_path, "c", {"module": "test_kills", "order": [7, 1, 0]}, counted(hits=0.25, hit=(1, 2)))
    begun = Tally("another case", 9)
    next(iter(begun))
    write_counts(tmp_path, "d", {"module": "test_kills", "order": [7, 0, 0]}, begun)
    counts = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    text = report.page(counts, ["Python 3", "torch 2"])
    assert "\n4 cases, 10 tries, 0 lost. Made with Python 3, torch 2.\n\n## Processes that are killed\n" in text
    tables = [line for line in text.splitlines() if line.startswith(("| a", "## "))]
    assert tables == [
        "## Processes that are killed",
        "| another case (not tried to the end) | 1 |  | 1 | 0 |",
        "| a case | 4 | 2 | 4 | 0 |",
        "| a case | 2 |  | 2 | 0 |",
        "## Files that are damaged",
        "| a case | 3 |  | 3 | 0 |",
    ]
