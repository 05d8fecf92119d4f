"""Signals that end a training or request a checkpoint

SIGTERM, SIGUSR1 and Ctrl-C come once or twice: from inside at every kind of moment of a training, or from outside at a
random one; to one process, to one of two, to both, to torchrun, or to a process group that includes the processes that
load data. It has **survived** if the training ends as the signal requires (or continues, after SIGUSR1) with a
checkpoint of the step that it had reached, nothing is left of the signal, and a new start ends bit by bit as an
undisturbed training. A *hit* is a signal that came during the training.
"""

import os
import re
import signal
import time

import pytest
from launches import SOON, endings_in, trials_in

several = pytest.mark.xdist_group("processes")

# The checkpoints that are made are those that signals ask for, and the last one.
RARE = {"checkpoint_every": "1000 steps", "log_every": None, "evaluate_every_n_steps": 4}
PAIR = {**RARE, "world": 2, "sizes": [320, 6], "pauses": [0.01, 0.0], "evaluate_every_n_steps": 16}
INSIDE = (
    "on_fit_start",
    "on_epoch_start",
    "on_before_training_step",
    "training_step",
    "on_before_backward",
    "on_after_optimizer_step",
    "on_after_zero_grad",
    "on_evaluation_start",
    "validation_step",
    "metric",
    "on_evaluation_end",
    "on_epoch_end",
    "write",
    "on_save_checkpoint",
)
# How often a moment comes before the last step, where that is less than three times.
OFTEN = {"on_fit_start": 1, "on_epoch_start": 2, "on_epoch_end": 1, "write": 2, "on_save_checkpoint": 1}
OFTEN |= {"on_evaluation_start": 2, "metric": 2, "on_evaluation_end": 2}
WAYS = {
    "saving at once": {},
    "saving in the background": {"checkpoint_async": True},
    "with two workers": {"dataloader_num_workers": 2},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Arguments of the training -> what it ends with if nothing happens to it."""
    endings = endings_in(tmp_path_factory.mktemp("undisturbed"))
    return lambda **arguments: same(endings(**arguments))


@pytest.fixture
def trial(tmp_path):
    """Arguments of the training -> a new trial."""
    return trials_in(tmp_path)


# Recorded arguments that change nothing of what is trained, in which an undisturbed training may differ.
KEEPING = ("multiple_checkpoints", "checkpoint_async", "log_every")


def same(endings):
    """All but how many checkpoints were made, which depends on the signals, and that they were kept otherwise."""
    first, *others = endings
    described = {**first["trainer"], "state": {**first["trainer"]["state"], "num_checkpoints_made": None}}
    record = described["configuration"]
    settings = {name: value for name, value in record["settings"].items() if name not in KEEPING}
    assert len(record["settings"]) - len(settings) == len(KEEPING)
    described["configuration"] = {**record, "settings": settings}
    return [{**first, "newest": None, "trainer": described}, *others]


def stood_at(printed):
    """The step at which the training says that it was interrupted, and from which it will go on."""
    [(step, goes_on)] = re.findall(r"interrupted at step (\d+); run again to continue from step (\d+)", printed)
    assert step == goes_on, printed
    return int(step)


def assert_left_at_a_checkpoint(trial, printed):
    """What a SIGTERM leaves: the newest checkpoint is of the step at which the training stood."""
    assert max(trial.steps_there()) == stood_at(printed)
    trial.check()
    assert not trial.left_behind()


def moment_of(attempt, moments=INSIDE):
    """A moment, each once with all tries, and the how many-th time that it comes."""
    at = attempt.chance.choice(moments) if attempt.number < 2 else moments[attempt.number % len(moments)]
    nth = attempt.chance.randint(1, OFTEN.get(at, 3))
    attempt.plan = f"{at}, time {nth}"
    return at, nth


@pytest.mark.parametrize("way", WAYS)
def test_sigterm_at_every_moment(tally, trial, undisturbed, way):
    options = {**RARE, "checkpoint_every": "5 steps", **WAYS[way]}
    expected = undisturbed(**options)
    for attempt in tally(f"SIGTERM at each moment, {way}", small=2, full=3 * len(INSIDE), hits=0.9):
        with attempt:
            at, nth = moment_of(attempt)
            ended = trial(**options)
            with ended.launch({"at": at, "nth": [nth], "do": ["SIGTERM"]}) as launch:
                assert launch.ends() == [-signal.SIGTERM], launch.shown()
                [signaled] = ended.noted(did="SIGTERM")
                assert stood_at(launch.printed()) - (signaled["step"] or 0) in (0, 1)
                assert_left_at_a_checkpoint(ended, launch.printed())
                attempt.hit()
            assert same(ended.goes_on()) == expected
            ended.clear()


def test_sigterm_with_a_handler(tally, trial, undisturbed):
    """The script's own handler is told in the end, and is back; so is that for SIGUSR1."""
    expected = undisturbed(**RARE)
    for attempt in tally("SIGTERM to a script that handles it", small=1, full=20):
        with attempt:
            step = attempt.chance.randrange(11)
            attempt.plan = f"after {step} steps"
            ended = trial(**RARE, handles=True)
            with ended.launch({"at": "training_step", "step": step, "do": ["SIGTERM"]}) as launch:
                assert launch.ends() == [143], launch.shown()
                assert_left_at_a_checkpoint(ended, launch.printed())
            assert [line["handled"] for line in ended.noted() if "handled" in line] == ["SIGTERM"]
            [last] = ended.noted(ended="Terminated")
            assert last["kept"]
            assert last["step"] == step + 1
            assert same(ended.goes_on()) == expected


def test_sigusr1_at_every_moment(tally, trial, undisturbed):
    """A checkpoint is made at the next step, once, and the training goes on."""
    expected = undisturbed(**RARE)
    for attempt in tally("SIGUSR1 at each moment, once or twice", small=2, full=2 * len(INSIDE), hits=0.9):
        with attempt:
            at = attempt.chance.choice(INSIDE[:-2])
            attempt.plan = at
            asked = trial(**RARE, handles=True, multiple_checkpoints=True)
            both = ["SIGUSR1"] * attempt.chance.randint(1, 2)
            with asked.launch({"at": at, "nth": [2 if at == "training_step" else 1], "do": both}) as launch:
                assert launch.ends() == [0], launch.shown()
            signaled = asked.noted(did="SIGUSR1")[0]["step"] or 0
            *made, last = asked.steps_there()
            assert last == 12
            assert len(made) == 1
            assert made[0] - signaled in (0, 1)
            attempt.hit()
            assert [line["kept"] for line in asked.noted(ended="")] == [True]
            assert not [line for line in asked.noted() if "handled" in line]
            assert same(asked.endings()) == expected
            asked.check()


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_sigusr1_then_sigterm(tally, trial, undisturbed, background):
    """As schedulers send them. The second may come while the checkpoint that the first asked for is being written."""
    expected = undisturbed(**RARE, checkpoint_async=background)
    case = f"SIGUSR1, then SIGTERM, saving {'in the background' if background else 'at once'}"
    for attempt in tally(case, small=2, full=20):
        with attempt:
            step = attempt.chance.randrange(8)
            second = [{"at": "write", "nth": [1]}, {"at": "training_step", "step": step + 1}][attempt.number % 2]
            attempt.plan = f"after {step} steps, then at {second}"
            ended = trial(**RARE, checkpoint_async=background)
            signals = {"at": "training_step", "step": step, "do": ["SIGUSR1"]}, {**second, "do": ["SIGTERM"]}
            with ended.launch(*signals) as launch:
                assert launch.ends() == [-signal.SIGTERM], launch.shown()
                assert_left_at_a_checkpoint(ended, launch.printed())
                assert stood_at(launch.printed()) <= step + 3
            assert same(ended.goes_on()) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_twice(tally, trial, undisturbed, number):
    """The second one ends the training at once, even in the middle of a step, or of a checkpoint that is waited for."""
    often = {**RARE, "checkpoint_every": "3 steps"}
    expected = undisturbed(**often)
    name, ends = signal.Signals(number).name, [-number if number == signal.SIGTERM else 1]
    for attempt in tally(f"{name} twice", small=2, full=30, hits=0.7):
        with attempt:
            at, nth = moment_of(attempt, INSIDE[3:])
            signals = [{"at": at, "nth": [nth], "do": [name, "later", name]}]
            if number == signal.SIGINT and at != "write":
                signals = [{"at": at, "nth": [nth], "do": [name]}, {"at": "on_keyboard_interrupt", "do": [name]}]
            ended = trial(**often, checkpoint_async=attempt.number % 2 == 1 or at == "write")
            with ended.launch(*signals) as launch:
                codes = launch.ends()
            ended.check()
            assert codes in (ends, [0])  # 0: Python dropped the exception
            if codes == ends and len(ended.noted(did=name)) == 2:
                attempt.hit()
            assert same(ended.goes_on()) == expected


def test_twice_at_once(tally, trial, undisturbed):
    """What comes twice within a second, since a launcher passes on what all processes got, is one signal."""
    options = {**RARE, "checkpoint_every": "5 steps"}
    expected = undisturbed(**options)
    for attempt in tally("SIGTERM twice within a second", small=1, full=20):
        with attempt:
            at, nth = moment_of(attempt)
            ended = trial(**options, checkpoint_async=attempt.number % 2 == 1)
            with ended.launch({"at": at, "nth": [nth], "do": ["SIGTERM", "SIGTERM"]}) as launch:
                assert launch.ends() == [-signal.SIGTERM], launch.shown()
                assert_left_at_a_checkpoint(ended, launch.printed())
            assert same(ended.goes_on()) == expected


def test_ctrl_c(tally, trial, undisturbed):
    """It raises KeyboardInterrupt wherever the training is; what was made before is there, and is gone on from."""
    often = {**RARE, "checkpoint_every": "3 steps"}
    expected = undisturbed(**often)
    for attempt in tally("Ctrl-C at each moment", small=2, full=3 * len(INSIDE), hits=0.6):
        with attempt:
            at, nth = moment_of(attempt)
            ended = trial(**often, checkpoint_async=attempt.number % 2 == 1)
            with ended.launch({"at": at, "nth": [nth], "do": ["SIGINT"]}) as launch:
                if launch.ends() == [1]:
                    attempt.hit()
                    assert [line["ended"] for line in ended.noted() if "ended" in line] == ["KeyboardInterrupt"]
                    assert "interrupted at step" in launch.printed()
            ended.check()
            assert same(ended.goes_on()) == expected


def waiting(attempt, steps, longest):
    """Where a training waits for the test, and how long after that the signal comes."""
    step, delay = attempt.chance.choice(steps), attempt.chance.uniform(0, longest)
    attempt.plan = f"{delay:.3f} s after {step} steps"
    return {"at": "training_step", "step": step, "do": ["wait"]}, delay


def send(trial, delay, signals):
    """Let the processes go on that wait, and send a signal a moment later."""
    trial.wait_for(did="wait", count=trial.world)
    (trial.folder / "go").touch()
    time.sleep(delay)
    signals()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=["SIGTERM", "SIGUSR1", "Ctrl-C"]
)
def test_to_a_process_group(tally, trial, undisturbed, number):
    """As terminals, torchrun and schedulers send them: the processes that load data get them as well."""
    options = {**RARE, "dataloader_num_workers": 2, "pauses": [0.02, 0.002]}
    expected = undisturbed(**options)
    # What Ctrl-C raises while a loader is cleared away, at the end of an epoch or an evaluation, Python drops.
    steps = [0, 1, 2, 4, 6, 8, 9] if number == signal.SIGINT else range(9)
    case = f"{signal.Signals(number).name} to a process group with workers"
    for attempt in tally(case, small=2, full=30, hits=0.4):
        with attempt:
            wait, delay = waiting(attempt, steps, 0.02)
            ended = trial(**options)
            with ended.launch(wait) as launch:
                send(ended, delay, lambda group=launch.children[0].pid: os.killpg(group, number))
                codes, printed, shown = launch.ends(), launch.printed(), launch.shown()
            assert "DataLoader worker" not in printed
            if number == signal.SIGTERM:
                assert codes == [-signal.SIGTERM], shown
                assert_left_at_a_checkpoint(ended, printed)
            else:
                dropped = "Exception ignored in" in printed
                assert codes == [0 if number == signal.SIGUSR1 or dropped else 1], shown
            if codes != [0] or number == signal.SIGUSR1:
                attempt.hit()
            assert same(ended.goes_on()) == expected
            ended.clear()


@several
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_to_one_of_two_processes_or_both(tally, trial, undisturbed, number):
    """What one was told, both do at the same step; also where something is due at every step."""
    expected = undisturbed(**PAIR)
    case = f"{signal.Signals(number).name} to one of two processes, or to both"
    for attempt in tally(case, small=2, full=40):
        with attempt:
            step, ranks = attempt.chance.randrange(12), [[1], [0, 1], [0]][attempt.number % 3]
            at = attempt.chance.choice(["training_step", "on_after_optimizer_step", "on_before_backward"])
            log_every = [1, None][attempt.number % 2]
            attempt.plan = f"processes {ranks}, {at}, after {step} steps, log_every={log_every}"
            pair = trial(**{**PAIR, "log_every": log_every}, multiple_checkpoints=True)
            do = [signal.Signals(number).name]
            signals = [{"at": at, "step": step, "rank": rank, "do": do} for rank in ranks]
            with pair.launch(*signals) as launch:
                codes, printed, shown = launch.ends(), launch.printed(), launch.shown()
            if number == signal.SIGTERM:
                assert codes == [-signal.SIGTERM] * 2, shown
                assert_left_at_a_checkpoint(pair, printed)
                assert stood_at(printed) <= 40
                assert same(pair.goes_on()) == expected
            else:
                assert codes == [0, 0], shown
                assert same(pair.endings()) == expected
                assert len(pair.steps_there()) == 2


@several
def test_to_one_of_two_processes_while_both_save(tally, trial, undisturbed):
    often = {**PAIR, "checkpoint_every": "8 steps", "checkpoint_async": True}
    expected = undisturbed(**often)
    for attempt in tally("SIGTERM to one of two processes while both save in the background", small=1, full=30):
        with attempt:
            rank, nth = attempt.chance.randrange(2), attempt.chance.randint(1, 3)
            attempt.plan = f"process {rank}, checkpoint {nth}"
            pair = trial(**often)
            with pair.launch({"at": "write", "nth": [nth], "rank": rank, "do": ["SIGTERM"]}) as launch:
                assert launch.ends() == [-signal.SIGTERM] * 2, launch.shown()
                assert_left_at_a_checkpoint(pair, launch.printed())
            assert same(pair.goes_on()) == expected


@several
def test_to_the_agent_of_torchrun(tally, trial, undisturbed):
    """It passes the signal on to its processes; here it forks them."""
    expected = undisturbed(**PAIR)
    for attempt in tally("SIGTERM to the agent of torchrun", small=1, full=20):
        with attempt:
            wait, delay = waiting(attempt, range(12), 0.05)
            pair = trial(**PAIR)
            with pair.launch_elastic(wait) as launch:
                send(pair, delay, lambda agent=launch.children[0].pid: os.kill(agent, signal.SIGTERM))
                assert launch.ends() == [1]
                assert_left_at_a_checkpoint(pair, launch.printed())
            assert same(pair.goes_on()) == expected


@several
@pytest.mark.full
def test_to_torchrun(tally, trial, undisturbed):
    """The real one: it restarts its processes when one dies, and sends SIGTERM to their groups, with the workers."""
    options = {**PAIR, "dataloader_num_workers": 1, "checkpoint_every": "4 steps"}
    expected = undisturbed(**options)
    for attempt in tally(
        "a death and a SIGTERM under torchrun, in interpreters of their own, with workers", small=1, full=8
    ):
        with attempt:
            wait, delay = waiting(attempt, range(12, 16), 0.05)
            death = {"at": "training_step", "step": attempt.chance.randrange(12), "rank": attempt.chance.randrange(2)}
            attempt.plan += f" of the second try; in the first {death}"
            pair = trial(**options)
            with pair.torchrun({**death, "do": ["SIGKILL"]}, {**wait, "attempt": 1}, restarts=2) as process:
                try:
                    send(pair, delay, process.terminate)
                    assert process.wait(SOON) == 1
                finally:
                    process.kill()
            assert len(pair.noted(did="SIGKILL")) == 1
            assert_left_at_a_checkpoint(pair, pair.log())
            assert same(pair.goes_on()) == expected
