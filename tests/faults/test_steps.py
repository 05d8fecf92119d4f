"""Trainings that are killed at every step

A training is killed by SIGKILL before or after each of its optimizer steps in turn, and resumed in a new process with
other random numbers. The cases differ in what a checkpoint has to contain. It has **survived** if it ends with the same
weights, optimizer, random states, history, decisions, saved models and state of the rules, bit by bit, as an
undisturbed one.
"""

import random

import pytest
from launches import endings_in, trials_in
from trainings import journal

BEFORE_AND_AFTER = ("on_before_training_step", "on_after_optimizer_step")
BY_STEP = {"scheduler": "CosineWithWarmup", "scheduler_kwargs": {"num_warmup_steps": 2}}
BY_EPOCH = {"scheduler": "StepLR", "scheduler_kwargs": {"step_size": 1}, "step_scheduler_per_epoch": True}
TWO_SETS = {"sizes": [22, 6, 5], "rules": ["best_error@a/valid_loss@b", "best_worst(spread) keep 2", "best_train_loss"]}
WAYS = {
    "with dropout": {},
    "with two workers": {"dataloader_num_workers": 2},
    "with accumulation": {"hps": {"batch_size": 1}, "grad_accumulation_steps": 4},
    "with a schedule by step": {"hps": BY_STEP},
    "with a schedule by epoch": {"hps": BY_EPOCH},
    "evaluating at the ends of epochs": {"evaluate_every_n_steps": None},
    "up to a number of steps": {"hps": {"max_steps": 9}},
    "with two validation sets": TWO_SETS,
    "saving in the background": {"checkpoint_async": True},
    "saving every third step": {"checkpoint_every": "3 steps"},
    "with all of it": {
        **TWO_SETS,
        "hps": {"batch_size": 1, **BY_STEP},
        "grad_accumulation_steps": 4,
        "dataloader_num_workers": 2,
        "checkpoint_async": True,
    },
}
STOPPED = {
    "rules": ["best_error by 5%", "best_avg(spread, 2) keep 3", "best_valid_loss if error < 2.7 after 3 steps"],
    "evaluate_every_n_steps": 1,
    "patience": {"best_error": 3, "best_avg(spread, 2)": 9},
    "stop_when": ["stalled(valid_loss, 6)", "valid_loss < 0.01"],
    "hps": {"epochs": 4, "optim_kwargs": {"lr": 0.05}},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Arguments of the training -> what it ends with if nothing happens to it."""
    return endings_in(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def trial(tmp_path):
    """Arguments of the training -> a new trial."""
    return trials_in(tmp_path)


def kills_of(steps, seed):
    """A kill before and after each step, in a random order."""
    kills = [{"at": at, "step": step, "do": ["SIGKILL"]} for step in range(steps) for at in BEFORE_AND_AFTER]
    random.Random(seed).shuffle(kills)
    return kills


def assert_killed(trial, kill):
    with trial.launch(kill) as launch:
        assert launch.ends() == [-9], launch.shown()
    trial.check()


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_every_step(tally, trial, undisturbed, way):
    expected = undisturbed(**WAYS[way])
    kills = kills_of(expected[0]["trainer"]["position"]["step"], way)
    for attempt in tally(f"killed at each step, {way}", small=1, full=len(kills)):
        with attempt:
            kill = kills[attempt.number]
            attempt.plan = f"{kill['at']}, after {kill['step']} steps"
            killed = trial(**WAYS[way])
            assert_killed(killed, kill)
            assert killed.goes_on() == expected
            killed.clear()


@pytest.mark.parametrize("way", ["with dropout", "with all of it"])
def test_killed_at_every_step_of_one_training(tally, trial, undisturbed, way):
    expected = undisturbed(**WAYS[way])
    steps = expected[0]["trainer"]["position"]["step"]
    for attempt in tally(f"killed at all steps of one training, {way}", small=1, full=10):
        with attempt:
            killed = trial(**WAYS[way])
            for step in range(1, steps):
                at = attempt.chance.choice(BEFORE_AND_AFTER)
                # In the background a checkpoint may not be there yet: the next process does these steps again.
                assert_killed(killed, {"at": at, "step": step, "do": ["SIGKILL"]})
            assert killed.goes_on() == expected
            killed.clear()


def test_what_the_rules_remember(tally, trial, undisturbed):
    """Patience runs out in the middle, several models are kept, conditions look back: all of it as if undisturbed."""
    expected = undisturbed(**STOPPED)
    stopped = expected[0]["decisions"][-1]
    assert stopped["stop"] is not None
    assert 8 < stopped["step"] < 24
    kills = kills_of(stopped["step"], "rules")
    for attempt in tally("killed at each step, with rules that stop the training", small=3, full=len(kills)):
        with attempt:
            kill = kills[attempt.number]
            attempt.plan = f"{kill['at']}, after {kill['step']} steps"
            killed = trial(**STOPPED)
            assert_killed(killed, kill)
            before = journal(killed.path / "decisions.jsonl") if killed.there() else []
            assert before == expected[0]["decisions"][: len(before)]
            [ended] = killed.goes_on()
            assert ended["trainer"]["engine"] == expected[0]["trainer"]["engine"]
            assert ended == expected[0]
            [again] = killed.goes_on()  # it stays stopped
            assert again["decisions"] == expected[0]["decisions"]
            killed.clear()


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_two_processes_killed_at_a_step(tally, trial, undisturbed, background):
    options = {"world": 2, "sizes": [44, 6, 5], "checkpoint_async": background, "hps": BY_STEP}
    expected = undisturbed(**options)
    steps = expected[0]["trainer"]["position"]["step"]
    case = f"two processes killed at a step, saving {'in the background' if background else 'at once'}"
    for attempt in tally(case, small=2, full=30):
        with attempt:
            step, at = attempt.chance.randrange(steps), attempt.chance.choice(BEFORE_AND_AFTER)
            dies = attempt.chance.choice([0, 1, None])
            attempt.plan = f"{at}, after {step} steps, {'both' if dies is None else f'process {dies}'}"
            killed = trial(**options)
            kill = {"at": at, "step": step, "do": ["SIGKILL"], **({} if dies is None else {"rank": dies})}
            with killed.launch(kill) as launch:
                codes = launch.ends()
                assert codes == [-9 if dies in (rank, None) else 1 for rank in range(2)], launch.shown()
            killed.check()
            assert killed.goes_on() == expected
            killed.clear()


def run_with_nan(trial, nan):
    """Start a training whose loss is no number at a step; it is told once."""
    with trial.launch(nan) as launch:
        assert launch.ends() == [0], launch.shown()
        assert launch.printed().count("the training loss is nan") == 1
        assert f"the training loss is nan at step {nan['step'] + 1}" in launch.printed()
    return trial.endings()


def test_a_loss_that_is_no_number(tally, trial):
    """It is told once, with its step, also over a kill; no rule asks to stop."""
    for attempt in tally("a training loss that is no number, and a kill later", small=1, full=20):
        with attempt:
            step = attempt.chance.randrange(1, 8)
            kill = attempt.chance.randrange(step + 1, 12)
            attempt.plan = f"after {step} steps, killed after {kill}"
            nan = {"at": "training_step", "step": step, "do": ["nan"]}
            whole, killed = trial(log_every=1), trial(log_every=1)
            expected = run_with_nan(whole, nan)
            assert [decision["stop"] for decision in expected[0]["decisions"]] == [None] * 6
            with killed.launch(nan, {"at": "on_before_training_step", "step": kill, "do": ["SIGKILL"]}) as launch:
                assert launch.ends() == [-9], launch.shown()
            assert killed.goes_on() == expected
            assert "the training loss is nan" not in killed.printed


def test_a_loss_that_is_no_number_ends_a_training_whose_rules_say_so(tally, trial):
    for attempt in tally("a training loss that is no number, and a condition for it", small=1, full=20):
        with attempt:
            step = attempt.chance.randrange(11)
            attempt.plan = f"after {step} steps"
            stops = trial(log_every=1, stop_when=["train_loss is nan"])
            [ended] = run_with_nan(stops, {"at": "training_step", "step": step, "do": ["nan"]})
            last = ended["decisions"][-1]
            assert (last["step"], last["stop"]["asked_by"]) == (step + 1, "train_loss is nan")
            [again] = stops.goes_on()  # it stays stopped
            assert again["decisions"] == ended["decisions"]
            assert "the training loss is nan" not in stops.printed
