"""Processes that are killed

A training makes a checkpoint at every step, and three rules save and replace models. Its process is killed by SIGKILL,
at a random moment or at a random file operation, and started again with other random numbers. It has **survived** if
every checkpoint and every model that had been reported exists, no directory with the name of a checkpoint or a saved
model is incomplete, and the training ends with the same weights, optimizer, random states, history, decisions and saved
models, bit by bit, as an undisturbed one. A *hit* is a kill that left something unfinished on the disk, or came between
a checkpoint and its report.
"""

import itertools
import shutil
import statistics
import time
from collections import Counter

import pytest
from trials import tree


def wait_for_save(is_running, trial, number):
    """Wait until the directory of a save is there in which something is written, or the process has ended."""
    while is_running():
        if len(trial.told()) >= number and any(trial.checkpoints.glob(".tmp-*")):
            return
        time.sleep(0.0005)


def was_hit(trial):
    reported = [line["made"] for line in trial.told()]
    return bool(trial.left_behind()) or max(trial.there(), default=0) > max(reported, default=0)


def period_of(trial):
    times = [line["time"] for line in trial.told()]
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_killed_at_a_moment_of_a_save(tally, trial, how):
    whole = trial(checkpoint_async=how == "in the background", multiple_checkpoints=True)
    expected, period = whole.finish(), period_of(whole)
    case = f"killed at a random moment of a save, {how}"
    for attempt in tally(case, small=12, full=200, hits=0.25):
        with attempt:
            killed = trial(checkpoint_async=how == "in the background", multiple_checkpoints=True)
            number, delay = attempt.chance.randrange(6), attempt.chance.uniform(0, period)
            attempt.plan = f"{delay:.4f} s after the beginning of save {number + 1}"
            child = killed.start()
            wait_for_save(child.is_running, killed, number)
            time.sleep(delay)
            child.kill()
            if child.end() != 0:
                killed.check(keeps_all=True)
                if was_hit(killed):
                    attempt.hit()
            assert killed.finish() == expected
            killed.check(keeps_all=True)
            assert not killed.left_behind()
            killed.clear()


@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_killed_at_an_operation_on_a_file(tally, trial, how):
    whole = trial(checkpoint_async=how == "in the background")
    expected, operations = whole.finish({"kind": "count"}), whole.operations()
    case = f"killed at a random operation on a file, saving {how}"
    for attempt in tally(case, small=12, full=200, hits=0.25):
        with attempt:
            killed = trial(checkpoint_async=how == "in the background")
            at = attempt.chance.randint(1, operations)
            attempt.plan = f"before operation {at} of {operations}"
            child = killed.start({"kind": "die", "at": at})
            if child.end() != 0:
                killed.check()
                if was_hit(killed):
                    attempt.hit()
            assert killed.finish() == expected
            killed.check()
            assert not killed.left_behind()
            killed.clear()


def test_killed_while_a_saving_is_replaced(tally, trial):
    often = {"evaluate_every_n_steps": 1, "checkpoint_every": "3 steps", "rules": ["best_age", "best_age + 1 keep 2"]}
    whole = trial(**often)
    expected, operations = whole.finish({"kind": "count"}), whole.operations()
    for attempt in tally("killed while a saved model is replaced", small=12, full=200, hits=0.25):
        with attempt:
            killed = trial(**often)
            at = attempt.chance.randint(operations // 6, operations)
            attempt.plan = f"before operation {at} of {operations}"
            child = killed.start({"kind": "die", "at": at})
            if child.end() != 0:
                killed.check()
                if was_hit(killed):
                    attempt.hit()
            assert killed.finish() == expected
            killed.check()
            killed.clear()


def test_killed_while_pruning(tally, trial):
    several = {"multiple_checkpoints": True, "max_checkpoints": 2, "rules": []}
    expected = trial(**several).finish()
    for attempt in tally("killed while older checkpoints are deleted", small=8, full=100, hits=0.5):
        with attempt:
            killed = trial(**several)
            which, at = attempt.chance.randint(1, 4), attempt.chance.randint(1, 10)
            attempt.plan = f"before operation {at} of deletion {which}"
            assert killed.start({"kind": "die pruning", "which": which, "at": at}).end() == -9
            killed.check()
            assert len(killed.there()) >= 2
            if any(name.startswith(".trash-") for name in killed.left_behind()):
                attempt.hit()
            assert killed.finish() == expected
            killed.check()
            assert killed.there()[-2:] == [5, 6]
            assert not killed.left_behind()
            killed.clear()


@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_killed_again_while_it_goes_on(tally, trial, how):
    whole = trial(checkpoint_async=how == "in the background")
    expected, operations = whole.finish({"kind": "count"}), whole.operations()
    whole.finish({"kind": "count"})
    last = whole.operations_before_start()
    case = f"killed in a save, and again while going on, saving {how}"
    for attempt in tally(case, small=5, full=50, hits=0.6):
        with attempt:
            killed = trial(checkpoint_async=how == "in the background")
            first, second = attempt.chance.randint(last, operations), attempt.chance.randint(1, last)
            attempt.plan = f"before operation {first} of {operations}, then before operation {second}"
            killed.start({"kind": "die", "at": first}).end()
            killed.check()
            before = len(killed.told())
            if killed.start({"kind": "die", "at": second}).end() == -9 and len(killed.told()) == before:
                attempt.hit()
            killed.check()
            assert killed.finish() == expected
            killed.check()
            assert not killed.left_behind()
            killed.clear()


def contents(path):
    """How often each content is there, but for files that each training writes anew, or adds to."""
    return Counter(tree(path, but=(".lock", "MANIFEST.json", "index.json", "run.json", "log.jsonl")).values())


@pytest.mark.parametrize("saves", [True, False], ids=["with models", "without models"])
def test_killed_while_it_starts_anew(tally, trial, saves):
    """Nothing of the earlier training is lost, and none of it is taken for the new one."""
    options = {"disable_model_saving": not saves}
    earlier, whole, copied = trial(seed=3, **options), trial(**options), trial(**options)
    earlier_end, expected = earlier.finish(), whole.finish()
    shutil.copytree(earlier.path, copied.path)
    copied.finish({"kind": "count"}, resume=False)
    last = copied.operations_before_start()
    case = f"killed while a training {'with' if saves else 'without'} saved models is put aside"
    for attempt in tally(case, small=6, full=100, hits=0.4):
        with attempt:
            killed = trial(seed=0, **options)
            shutil.copytree(earlier.path, killed.path)
            kept, at = contents(killed.path), attempt.chance.randint(5, last)
            resume = attempt.chance.choice([None, False])
            attempt.plan = f"before operation {at} of {last}, then resume={resume}"
            assert killed.start({"kind": "die", "at": at}, resume=False).end() == -9
            assert not kept - contents(killed.path)
            if (killed.path / "earlier-1").exists():
                attempt.hit()
            goes_on = resume is None and killed.there()
            assert killed.finish(resume=resume) == (earlier_end if goes_on else expected)
            assert not kept - contents(killed.path)
            killed.clear()


def test_killed_while_it_goes_back(tally, trial):
    """To an earlier checkpoint: the later ones are put aside, and none is lost."""
    options = {"multiple_checkpoints": True}
    earlier, copied = trial(**options), trial(**options)
    earlier.finish()
    shutil.copytree(earlier.path, copied.path)
    expected = copied.finish({"kind": "count"}, resume=2)
    last = copied.operations_before_start()
    for attempt in tally("killed while later checkpoints are put aside", small=6, full=100, hits=0.1):
        with attempt:
            killed = trial(**options)
            shutil.copytree(earlier.path, killed.path)
            kept, at = contents(killed.checkpoints), attempt.chance.randint(last // 2, last)
            attempt.plan = f"before operation {at} of {last}"
            assert killed.start({"kind": "die", "at": at}, resume=2).end() == -9
            assert not kept - contents(killed.path)
            if 0 < len(list(killed.path.glob("earlier-*/*"))) < 4:
                attempt.hit()
            assert killed.finish(resume=2) == expected
            assert not kept - contents(killed.path)
            killed.clear()


def test_killed_in_an_interpreter_of_its_own(tally, trial):
    whole = trial()
    expected, period = whole.finish(), period_of(whole)
    for attempt in tally("killed at a random moment, each time in a fresh interpreter", small=1, full=10, hits=0):
        with attempt:
            killed = trial()
            number, delay = attempt.chance.randrange(6), attempt.chance.uniform(0, period)
            attempt.plan = f"{delay:.4f} s after the beginning of save {number + 1}"
            with killed.start_fresh() as process:
                wait_for_save(lambda: process.poll() is None, killed, number)
                time.sleep(delay)
                process.kill()
            killed.check()
            if was_hit(killed):
                attempt.hit()
            with killed.start_fresh() as process:
                assert process.wait() == 0
            assert killed.ending() == expected
            killed.check()
            killed.clear()
