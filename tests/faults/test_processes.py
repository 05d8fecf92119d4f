"""Processes of which one dies, stops or fails

Two processes train together. One of them is killed or stopped for good; raises an error in a step, an evaluation, a
metric or a callback, or during an exchange between the two; or cannot write its part of a checkpoint. It has
**survived** if the other one ends soon (after a stop: within the timeout that the script has set), only the first error
is shown, no incomplete checkpoint is visible, and a new start ends bit by bit as an undisturbed training. Under
torchrun, restarts are left to it. Two trainings that are started in one folder at the same moment have survived if
exactly one of them trains.
"""

from functools import cache

import pytest
from launches import SOON, Launch, trials_in, wait_until

pytestmark = pytest.mark.xdist_group("processes")

TIMEOUT = 8
PAIR = {"world": 2, "sizes": [48, 20], "checkpoint_every": "4 steps", "evaluate_every_n_steps": 3, "log_every": None}
MOMENTS = (
    {"at": "on_before_training_step", "step": 5},
    {"at": "training_step", "step": 4},
    {"at": "on_after_optimizer_step", "step": 7},
    {"at": "validation_step", "step": 6},
    {"at": "metric", "step": 6},
    {"at": "write", "nth": [1]},
    {"at": "write", "nth": [2]},
    {"at": "exchange", "nth": [2]},
    {"at": "on_save_checkpoint", "nth": [1]},
    {"at": "on_epoch_end", "nth": [1]},
)
BACKGROUND = [pytest.param(False, id="at once"), pytest.param(True, id="in the background")]


@pytest.fixture
def trial(tmp_path):
    """Arguments of the training -> a new trial."""
    return trials_in(tmp_path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the two processes end with, undisturbed: at once, or in the background, which a checkpoint records."""
    trials = trials_in(tmp_path_factory.mktemp("pair"))
    return cache(lambda background=False: trials(**PAIR, checkpoint_async=background).goes_on())


def how(background):
    return f"saving {'in the background' if background else 'at once'}"


def plan_of(attempt, what, moments=MOMENTS):
    """One process, at one moment, by the number of the attempt first, then by chance."""
    moment = moments[attempt.number] if attempt.number < len(moments) else attempt.chance.choice(moments)
    rank = attempt.chance.randrange(2)
    attempt.plan = f"{what} process {rank} at {moment}"
    return rank, {**moment, "do": [what], "rank": rank}


@pytest.mark.parametrize("background", BACKGROUND)
def test_one_is_killed(tally, trial, expected, background):
    for attempt in tally(f"one of two processes is killed, {how(background)}", small=3, full=60):
        with attempt:
            rank, kill = plan_of(attempt, "SIGKILL")
            pair = trial(**PAIR, checkpoint_async=background)
            with pair.launch(kill) as launch:
                assert launch.ends(1 - rank) == [1], launch.shown()
                assert launch.ends() == ([-9, 1] if rank == 0 else [1, -9])
                assert launch.printed().count("another process of this training has ended, or has not answered") == 1
            pair.check()
            assert pair.goes_on() == expected(background)
            assert not pair.left_behind()


@pytest.mark.parametrize("background", BACKGROUND)
def test_one_stops(tally, trial, expected, background):
    """The other one waits as long as the script says before it makes the trainer: PartialState(timeout=...)."""
    for attempt in tally(f"one of two processes stops, {how(background)}", small=1, full=60):
        with attempt:
            rank, stop = plan_of(attempt, "SIGSTOP", MOMENTS[1:])
            pair = trial(**PAIR, checkpoint_async=background)
            with pair.launch(stop, timeout=TIMEOUT) as launch:
                pair.wait_for(did="SIGSTOP")
                assert launch.ends(1 - rank) == [1], launch.shown()
                assert launch.children[rank].is_running()
            pair.check()
            assert pair.goes_on() == expected(background)
            assert not pair.left_behind()


@pytest.mark.parametrize("background", BACKGROUND)
def test_one_raises(tally, trial, expected, background):
    for attempt in tally(f"one of two processes raises an error, {how(background)}", small=5, full=60):
        with attempt:
            rank, error = plan_of(attempt, "raise", [moment for moment in MOMENTS if moment["at"] != "write"])
            pair = trial(**PAIR, checkpoint_async=background)
            with pair.launch(error) as launch:
                assert launch.ends() == [1, 1], launch.shown()
            [own] = pair.noted(rank=rank, ended="ArithmeticError")
            assert own["text"] == "disturbed"
            [other] = pair.noted(rank=1 - rank)
            assert other["ended"] == "PeerFailed"
            assert launch.printed().count("ArithmeticError: disturbed") == 1
            pair.check()
            assert pair.goes_on() == expected(background)


@pytest.mark.parametrize("background", BACKGROUND)
def test_one_cannot_write(tally, trial, expected, background):
    """Once, nothing is published and both go on until the next checkpoint; twice in a row, both raise."""
    for attempt in tally(f"one of two processes cannot write, {how(background)}", small=2, full=40):
        with attempt:
            rank, twice = attempt.chance.randrange(2), attempt.number % 2 == 1
            first = attempt.chance.randint(1, 2 if twice else 3)
            attempt.plan = f"process {rank}, checkpoint {first}{' and the next' if twice else ''}"
            failure = {"at": "write", "nth": [first, first + 1] if twice else [first], "rank": rank, "do": ["fail"]}
            pair = trial(**PAIR, checkpoint_async=background, multiple_checkpoints=True)
            with pair.launch(failure) as launch:
                codes = launch.ends()
                assert codes == ([1, 1] if twice else [0, 0]), launch.shown()
                warned, other = (child.printed() for child in launch.children)
            reason = f"no checkpoint at step {4 * first}: process {rank}: OSError: [Errno 28] No space left on device"
            assert warned.count("no checkpoint at step") == 1
            assert reason in warned
            assert "no checkpoint at step" not in other
            pair.check()
            assert not pair.left_behind()
            lost = {4 * first, 4 * first + 4} if twice else {4 * first}
            made = [step for step in (4, 8, 12) if step not in lost and not (twice and step > 4 * first)]
            assert pair.steps_there() == made
            if twice:
                ended = {line["rank"]: line["ended"] for line in pair.noted() if "ended" in line}
                assert ended == {rank: "Failed", 1 - rank: "PeerFailed"}
                assert weights(pair.goes_on()) == weights(expected())
            else:
                assert weights(pair.endings()) == weights(expected())


def weights(endings):
    return [ending["weights"] for ending in endings]


def test_restarts(tally, trial, expected):
    """Of torchrun's own agent, which forks here: a process kills itself, twice, and the training ends all the same."""
    for attempt in tally("a process kills itself under torchrun, twice", small=1, full=20):
        with attempt:
            steps = attempt.chance.randint(1, 6), attempt.chance.randint(7, 11)
            ranks = attempt.chance.randrange(2), attempt.chance.randrange(2)
            attempt.plan = f"processes {ranks} after {steps} steps"
            kills = [
                {"at": "training_step", "step": step, "rank": rank, "attempt": number, "do": ["SIGKILL"]}
                for number, (step, rank) in enumerate(zip(steps, ranks, strict=True))
            ]
            pair = trial(**PAIR)
            with pair.launch_elastic(*kills, restarts=2) as launch:
                assert launch.ends() == [0], launch.shown()
            assert len(pair.noted(did="SIGKILL")) == 2
            assert pair.endings() == expected()
            pair.check()


def test_an_error_beside_workers(tally, trial):
    """The processes that load data end with the training, and do not hold up the end of the interpreter."""
    for attempt in tally("an error where other processes load data, in an interpreter of its own", small=1, full=10):
        with attempt:
            step = attempt.chance.randrange(1, 11)
            attempt.plan = f"after {step} steps"
            fails = trial(dataloader_num_workers=2)
            with fails.in_interpreter([], {"at": "training_step", "step": step, "do": ["raise"]}) as process:
                try:
                    fails.wait_for(did="raise")
                    assert process.wait(SOON) == 1
                finally:
                    process.kill()
            assert "ArithmeticError: disturbed" in fails.log()


def test_two_trainings_at_the_same_moment(tally, trial):
    """One of them trains, and is not disturbed; the other one is told who works there, and changes nothing."""
    options = {"checkpoint_every": "1 step", "dataloader_num_workers": 1}
    [expected] = trial(**options).goes_on()
    for attempt in tally("two trainings are started in one folder at the same moment", small=3, full=50):
        with attempt:
            twice = trial(**options)
            waits = {"at": "on_fit_start", "do": ["wait"]}
            with Launch([child for _ in range(2) for child in twice.launch(waits).children]) as launch:
                wait_until(lambda: not all(child.is_running() for child in launch.children), SOON, launch.shown)
                twice.wait_for(did="wait")
                loser = next(rank for rank, child in enumerate(launch.children) if not child.is_running())
                assert launch.ends(loser) == [1]
                assert f"another training uses {twice.path} (process " in launch.children[loser].printed()
                (twice.folder / "go").touch()
                assert launch.ends(1 - loser) == [0], launch.shown()
            assert len(twice.noted(did="wait")) == 1
            assert twice.endings() == [expected]
            twice.check()
