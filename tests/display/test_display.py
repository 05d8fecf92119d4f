"""What a training shows: plain lines in a file, a bar on a terminal, nothing on the other processes."""

import math
import re
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from accmt.display.console import PlainConsole
from accmt.display.display import ConsoleDisplay, Display
from accmt.display.tables import decision_table, savings_table
from accmt.rules import Decision, KeptModel, Observation, Outcome, Progress, Stop, Verdict

SAVED = Verdict(
    "best_accuracy", (0.912,), (0.905,), Outcome.SAVED, "0.912 beats 0.905, saved", kept=(KeptModel((0.912,), 2, 20),)
)
BLOCKED = Verdict("best_f1", (0.5,), None, Outcome.BLOCKED, "the condition does not hold")
OBSERVATION = Observation(Progress(step=20, epoch=1, evaluation=2), {"dev": {"accuracy": 0.912, "valid_loss": 1 / 3}})


def shown(act, **console):
    file = StringIO()
    display = ConsoleDisplay(Console(file=file, width=160, **console))
    act(display)
    return file.getvalue()


def test_one_plain_line_per_logging_interval():
    def act(display):
        display.start(lambda: 0, 1000)
        display.logged(Progress(step=100, epoch=0, elapsed=2.0), 0.123456)
        display.logged(Progress(step=300, epoch=1, elapsed=4.0), math.nan)
        display.stop()

    assert shown(act).splitlines() == [
        "epoch 0  step 100/1000  loss 0.1235  50 steps/s  0:18 left",
        "epoch 1  step 300/1000  loss nan  100 steps/s  0:07 left",
    ]


def test_without_a_known_length():
    def act(display):
        display.start(lambda: 0, None)
        display.logged(Progress(step=100, elapsed=2.0), 1e-9)

    assert shown(act) == "epoch 0  step 100  loss 1e-09  50 steps/s\n"


def test_hours_are_shown():
    def act(display):
        display.start(lambda: 0, 100_000)
        display.logged(Progress(step=1000, elapsed=100.0), 1.0)

    assert shown(act).endswith("2:45:00 left\n")


def test_no_time_has_gone_by():
    def act(display):
        display.start(lambda: 0, 10)
        display.logged(Progress(step=1), 1.0)

    assert shown(act).startswith("epoch 0  step 1/10  loss 1  ")


def test_evaluations_savings_and_stops():
    stop = Stop("stop_when", "accuracy > 0.9 holds")

    def act(display):
        display.evaluated(OBSERVATION, Decision(OBSERVATION.progress, (SAVED, BLOCKED), stop=stop))

    assert shown(act).splitlines() == [
        "evaluation 2 at step 20  dev: accuracy 0.912, valid_loss 0.3333",
        "  best_accuracy: 0.912 beats 0.905, saved",
        "  stop: accuracy > 0.9 holds",
    ]


def test_the_evaluation_before_the_first_step():
    observation = Observation(Progress(), {"dev": {"accuracy": 0.5}}, initial=True)
    text = shown(lambda display: display.evaluated(observation, Decision(Progress())))
    assert text == "evaluation before the first step  dev: accuracy 0.5\n"


def test_without_validation_data_only_what_was_saved():
    observation = Observation(Progress(step=20, evaluation=2), {}, train_loss=0.5)
    text = shown(lambda display: display.evaluated(observation, Decision(Progress(), (SAVED,))))
    assert text == "  best_accuracy: 0.912 beats 0.905, saved\n"


def test_names_with_brackets_are_no_markup():
    def act(display):
        display.warn("metric [red]f1[/red] is nan")
        observation = Observation(Progress(step=1, evaluation=1), {"[bold]": {"f1[macro]": 0.5}})
        display.evaluated(observation, Decision(Progress()))

    assert shown(act).splitlines() == [
        "warning: metric [red]f1[/red] is nan",
        "evaluation 1 at step 1  [bold]: f1[macro] 0.5",
    ]


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_terminal_gets_a_bar_and_no_lines():
    step = iter(range(1000))

    def act(display):
        display.start(lambda: next(step) * 10, 1000)
        display.logged(Progress(step=100, elapsed=2.0), 0.25)
        display.stop()

    text = shown(act, force_terminal=True)
    assert "\x1b[" in text
    assert "━" in text
    assert re.search(r"\d+0/1000 +loss 0.25", plain(text))
    assert "step 100" not in plain(text)


def test_a_bar_shows_lines_above_it_and_is_gone_after_stop():
    def act(display):
        display.start(lambda: 5, None)
        display.evaluated(OBSERVATION, Decision(OBSERVATION.progress, (SAVED,)))
        display.stop()
        display.stop()
        display.logged(Progress(step=100, elapsed=2.0), 0.25)

    text = plain(shown(act, force_terminal=True))
    assert "evaluation 2 at step 20  dev: accuracy 0.912" in text
    assert text.rstrip().endswith("epoch 0  step 100  loss 0.25  48 steps/s")


def test_a_bar_ends_with_its_training_and_leaves_no_thread():
    before = set(threading.enumerate())
    file = StringIO()
    display = ConsoleDisplay(Console(file=file, force_terminal=True))
    for _ in range(3):
        display.start(lambda: 1, 10)
        display.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_no_display_shows_nothing(capfd):
    display = Display()
    display.show("something")
    display.warn("something")
    display.start(lambda: pytest.fail("the step was asked for"), 10)
    display.logged(Progress(step=100), 0.25)
    display.evaluated(OBSERVATION, Decision(OBSERVATION.progress, (SAVED,)))
    display.stop()
    assert capfd.readouterr() == ("", "")


def test_both_displays_have_the_same_methods():
    def methods(kind):
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Display) == methods(ConsoleDisplay)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")])
def test_an_output_that_takes_nothing_more_ends_no_training(monkeypatch, error):
    class Full(StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr("sys.stdout", Full())
    display = ConsoleDisplay()
    for _ in range(2):
        display.warn("it goes on")
        display.show("a table")
        display.evaluated(OBSERVATION, Decision(Progress(step=1), (SAVED,)))


@pytest.mark.parametrize("force_terminal", [False, True])
def test_names_and_texts_steer_nothing(force_terminal):
    """Of what reaches the terminal, only rich's own sequences steer it; a text is one line, without passwords."""
    evil = "\x1b]0;x\x07\x9b2J\u202e\r\nfaked [red]x[/red] http://me:secret@host"
    output = StringIO()
    display = ConsoleDisplay(PlainConsole(file=output, width=400, force_terminal=force_terminal))
    display.warn(evil)
    verdict = replace(SAVED, rule=evil, reason=evil)
    decision = Decision(OBSERVATION.progress, (verdict,), stop=Stop(evil, evil))
    display.evaluated(Observation(OBSERVATION.progress, {evil: {evil: 0.5}}), decision)
    display.show(evil, Text(evil), decision_table([decision]), savings_table([(evil, {evil: 1.0}, 1, Path("x"))]))
    text = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "secret" not in text
    assert r"warning: \x1b]0;x\x07\x9b2J\u202e\r\nfaked [red]x[/red] http://host" in text
    assert len(re.findall("^faked", text, re.MULTILINE)) == 2, "two are printed as they are, but for what steers"
