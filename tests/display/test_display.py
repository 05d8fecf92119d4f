"""What a training shows: plain lines in a file, a bar on a terminal, nothing on the other processes."""

import math
import re
import threading
from dataclasses import replace
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from accmt.display.console import PlainConsole
from accmt.display.display import ConsoleDisplay, Display, RuleResult, ShownPosition
from accmt.display.tables import decision_table
from accmt.rules import Decision, KeptModel, Observation, Outcome, Progress, Stop, Verdict

SAVED = Verdict(
    "best_accuracy", (0.912,), (0.905,), Outcome.SAVED, "0.912 beats 0.905, saved", kept=(KeptModel((0.912,), 2, 20),)
)
BLOCKED = Verdict("best_f1", (0.5,), None, Outcome.BLOCKED, "the condition does not hold")
HEADER = ({"model": "Net, 12 parameters"}, {"best_f1": "saves when f1 is higher"}, ["lr was 1 and is 2"])
RESULTS = (
    RuleResult("best_f1", {"f1": (0.5, 0.9, 0.7)}, {"f1": 0.9}, "step 20, epoch 1.5", Path("my runs/best_f1")),
    RuleResult("best_loss", {"loss": ()}, {}, "", None),
)
SUMMARY = (RESULTS, Path("my runs"), "the training is complete, after 30 steps")
OBSERVATION = Observation(Progress(step=20, epoch=1, evaluation=2), {"dev": {"accuracy": 0.912, "valid_loss": 1 / 3}})


def shown(act, **console):
    file = StringIO()
    display = ConsoleDisplay(Console(file=file, width=160, **console))
    act(display)
    return file.getvalue()


def begins(display, steps=1000):
    display.start(lambda: ShownPosition(0, steps, "1.0/10", 0.0))


def test_one_plain_line_per_logging_interval():
    def act(display):
        begins(display)
        display.logged(ShownPosition(100, 1000, "1/10", 2.0), 0.123456)
        display.logged(ShownPosition(300, 1000, "3.5/10", 4.0), math.nan)
        display.stop()

    assert shown(act).splitlines() == [
        "epoch 1/10  step 100/1000  loss 0.1235  50 steps/s, 0:18 left",
        "epoch 3.5/10  step 300/1000  loss nan  100 steps/s, 0:09 left",
    ]


def test_the_time_left_counts_evaluations():
    """At the pace of all steps of this process, not of the last ones."""

    def act(display):
        display.start(lambda: ShownPosition(100, 1000, "1.0/10", 0.0, elapsed=500.0))
        display.logged(ShownPosition(200, 1000, "2/10", 2.0, elapsed=502.0), 0.5)
        display.logged(ShownPosition(300, 1000, "3/10", 4.0, elapsed=514.0), 0.5)  # ten seconds of evaluation

    assert [line.split("  ")[-1] for line in shown(act).splitlines()] == [
        "50 steps/s, 0:16 left",
        "50 steps/s, 0:49 left",
    ]


def test_without_a_known_length():
    def act(display):
        begins(display, None)
        display.logged(ShownPosition(100, None, "1", 2.0), 1e-9)

    assert shown(act) == "epoch 1  step 100  loss 1e-09  50 steps/s\n"


def test_hours_are_shown():
    def act(display):
        begins(display)
        display.logged(ShownPosition(1000, 100_000, "1.1/10", 100.0), 1.0)

    assert shown(act).endswith("2:45:00 left\n")


def test_no_time_has_gone_by():
    def act(display):
        begins(display)
        display.logged(ShownPosition(1, 10, "1.1", 0.0), 1.0)

    assert shown(act) == "epoch 1.1  step 1/10  loss 1\n"


def test_evaluations_savings_and_stops():
    stop = Stop("stop_when", "accuracy > 0.9 holds")

    def act(display):
        display.evaluated(OBSERVATION, Decision(OBSERVATION.progress, (SAVED, BLOCKED), stop=stop), 75.0)

    assert shown(act).splitlines() == [
        "evaluation 2 at step 20  dev: accuracy 0.912, valid_loss 0.3333  (75.0 s)",
        "  best_accuracy: 0.912 beats 0.905, saved",
        "  stop: accuracy > 0.9 holds",
    ]


def test_the_evaluation_before_the_first_step():
    observation = Observation(Progress(), {"dev": {"accuracy": 0.5}}, initial=True)
    text = shown(lambda display: display.evaluated(observation, Decision(Progress()), 0.25))
    assert text == "evaluation before the first step  dev: accuracy 0.5  (0.2 s)\n"


def test_without_validation_data_only_what_was_saved():
    observation = Observation(Progress(step=20, evaluation=2), {}, train_loss=0.5)
    text = shown(lambda display: display.evaluated(observation, Decision(Progress(), (SAVED,)), 0.25))
    assert text == "  best_accuracy: 0.912 beats 0.905, saved\n"


def test_names_with_brackets_are_no_markup():
    def act(display):
        display.warn("metric [red]f1[/red] is nan")
        observation = Observation(Progress(step=1, evaluation=1), {"[bold]": {"f1[macro]": 0.5}})
        display.evaluated(observation, Decision(Progress()), 0.25)

    assert shown(act).splitlines() == [
        "warning: metric [red]f1[/red] is nan",
        "evaluation 1 at step 1  [bold]: f1[macro] 0.5  (0.2 s)",
    ]


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (160, "epoch 1.5/10 BAR 120/1000  loss 0.25  50 steps/s, 0:17 left  lr 0.003"),
        (80, "epoch 1.5/10 BAR 120/1000  loss 0.25  50 steps/s, 0:17 left  lr 0.003"),
        (40, "epoch 1.5/10 BAR 120/1000  loss 0.25"),
        (20, "epoch"),
    ],
)
def test_a_terminal_gets_a_bar_and_no_lines(width, left):
    """It has what fits into one line, the most important first."""
    moments = [ShownPosition(20 + n * 10, 1000, "1.5/10", n / 5, 0.003) for n in range(11)]
    output = StringIO()
    display = ConsoleDisplay(Console(file=output, force_terminal=True, width=width))
    display.start(lambda: moments.pop(0) if len(moments) > 1 else moments[0])
    display.logged(ShownPosition(100, 1000, "1/10", 2.0), 0.25)
    for _ in range(10):
        display._bar.live.refresh()
    display.stop()
    last = plain(output.getvalue()).rstrip("\n").split("\r")[-1]
    assert "\n" not in last
    assert "step 100" not in plain(output.getvalue())
    assert re.sub("[━╸╺]+", "BAR", last).startswith(left[:width])
    assert len(last.rstrip()) <= width


def test_the_time_of_evaluations_is_no_time_of_steps():
    """The clock of steps stands still during an evaluation, and so does what is shown."""
    moments = [ShownPosition(0, 100, "1.0/2", 0.0), *(ShownPosition(50, 100, "1/2", 1.0) for _ in range(9))]
    output = StringIO()
    display = ConsoleDisplay(Console(file=output, force_terminal=True, width=100))
    display.start(lambda: moments.pop(0) if len(moments) > 1 else moments[0])
    for _ in range(9):
        display._bar.live.refresh()
    display.stop()
    assert plain(output.getvalue()).rstrip().endswith("50/100  50 steps/s, 0:01 left")


def test_a_bar_shows_lines_above_it_and_is_gone_after_stop():
    def act(display):
        display.start(lambda: ShownPosition(5, None, "1", 0.0))
        display.evaluated(OBSERVATION, Decision(OBSERVATION.progress, (SAVED,)), 0.0)
        display.stop()
        display.stop()
        display.logged(ShownPosition(105, None, "2", 2.0), 0.25)

    text = plain(shown(act, force_terminal=True))
    assert "evaluation 2 at step 20  dev: accuracy 0.912" in text
    assert text.rstrip().endswith("epoch 2  step 105  loss 0.25  50 steps/s")


def test_a_bar_ends_with_its_training_and_leaves_no_thread():
    before = set(threading.enumerate())
    file = StringIO()
    display = ConsoleDisplay(Console(file=file, force_terminal=True))
    for _ in range(3):
        display.start(lambda: ShownPosition(1, 10, "1.1/2", 0.0))
        display.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_no_display_shows_nothing(capfd):
    display = Display()
    display.show("something")
    display.warn("something")
    display.describe(*HEADER)
    display.start(lambda: pytest.fail("the position was asked for"))
    display.logged(ShownPosition(100, None, "1", 1.0), 0.25)
    display.evaluated(OBSERVATION, Decision(OBSERVATION.progress, (SAVED,)), 0.0)
    display.stop()
    display.summarize(*SUMMARY)
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
        display.evaluated(OBSERVATION, Decision(Progress(step=1), (SAVED,)), 0.0)
        display.describe(*HEADER)
        display.summarize(*SUMMARY)


@pytest.mark.parametrize("force_terminal", [False, True])
def test_names_and_texts_steer_nothing(force_terminal):
    """Of what reaches the terminal, only rich's own sequences steer it; a text is one line, without passwords."""
    evil = "\x1b]0;x\x07\x9b2J\u202e\r\nfaked [red]x[/red] http://me:secret@host"
    output = StringIO()
    display = ConsoleDisplay(PlainConsole(file=output, width=400, force_terminal=force_terminal))
    display.warn(evil)
    verdict = replace(SAVED, rule=evil, reason=evil)
    decision = Decision(OBSERVATION.progress, (verdict,), stop=Stop(evil, evil))
    display.evaluated(Observation(OBSERVATION.progress, {evil: {evil: 0.5}}), decision, 0.0)
    display.show(evil, Text(evil), decision_table([decision]))
    display.describe({"name": evil}, {evil: evil}, [evil])
    folder = Path(evil.partition(" http")[0])
    display.summarize([RuleResult(evil, {evil: [1, 2]}, {evil: 1.0}, evil, folder)], folder, evil)
    text = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "secret" not in text
    assert r"warning: \x1b]0;x\x07\x9b2J\u202e\r\nfaked [red]x[/red] http://host" in text
    assert len(re.findall("^faked", text, re.MULTILINE)) == 2, "two are printed as they are, but for what steers"


def test_the_header_and_the_end_in_a_pipe():
    """Each is one line, which nothing is added to: a program can read it, and a log stays small."""
    text = shown(lambda display: (display.describe(*HEADER), display.summarize(*SUMMARY)))
    assert text.split("\n") == [
        "model: Net, 12 parameters",
        "best_f1: saves when f1 is higher",
        "note: lr was 1 and is 2",
        "",
        "Saved models",
        "best_f1  f1 0.9 ▁█▄  step 20, epoch 1.5  'my runs/best_f1'",
        "best_loss  loss  nothing was saved",
        "every decision and its reason: accmt explain 'my runs'",
        "",
        "the training is complete, after 30 steps",
        "",
    ]


def test_the_end_on_a_wide_terminal_is_in_columns():
    text = plain(shown(lambda display: display.summarize(*SUMMARY), force_terminal=True))
    assert text.splitlines()[2:4] == [
        "best_f1    f1 0.9 ▁█▄  step 20, epoch 1.5  'my runs/best_f1'",
        "best_loss  loss                            nothing was saved",
    ]


@pytest.mark.parametrize("width", [30, 40, 80])
def test_no_path_is_broken_on_a_narrow_terminal(width):
    output, folder = StringIO(), Path("my runs/a folder that is rather long/best_f1")
    display = ConsoleDisplay(PlainConsole(file=output, force_terminal=True, width=width))
    display.summarize([replace(RESULTS[0], folder=folder)], folder, "complete")
    display.warn(f"something is wrong in /data/{'deep/' * 20}file")
    lines = plain(output.getvalue()).splitlines()
    assert any(line.endswith(f"'{folder}'") for line in lines[:6])
    assert any(line.endswith(f"accmt explain '{folder}'") for line in lines)
    assert any(line.endswith(f"/data/{'deep/' * 20}file") for line in lines)
    assert all(line == line.rstrip() and (len(line) <= width or "/" in line) for line in lines)


def test_tables_are_not_padded_in_a_pipe():
    text = shown(lambda display: display.show(decision_table([Decision(Progress(), (SAVED, BLOCKED))])))
    assert "0.912 beats 0.905, saved\n" in text
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_output_without_unicode_gets_ascii(encoding):
    buffer = BytesIO()
    display = ConsoleDisplay(PlainConsole(file=TextIOWrapper(buffer, encoding), width=100))
    display.summarize([replace(RESULTS[0], rule="best_größe", folder=Path("模"))], Path("x"), "complete")
    display._console.file.flush()
    text = buffer.getvalue().decode(encoding)
    assert ("▁█▄" if encoding == "utf-8" else "_#:") in text
    assert ("best_größe" if encoding != "ascii" else r"best_gr\xf6\xdfe") in text
    assert ("模" if encoding == "utf-8" else r"\u6a21") in text


def test_a_dataset_given_alone_is_called_valid():
    observation = Observation(Progress(step=1, evaluation=1), {"0": {"f1": 0.5}})
    two = Observation(Progress(step=1, evaluation=1), {"0": {"f1": 0.5}, "1": {"f1": 0.25}})

    def act(display):
        for each in (observation, two):
            display.evaluated(each, Decision(Progress()), 0.0)

    assert shown(act).splitlines() == [
        "evaluation 1 at step 1  valid: f1 0.5  (0.0 s)",
        "evaluation 1 at step 1  0: f1 0.5; 1: f1 0.25  (0.0 s)",
    ]


def test_a_line_stands_above_a_bar_that_shows_the_same_step(monkeypatch):
    monkeypatch.setattr("accmt.display.display._REFRESHES", 0.001)
    step = 9
    output = StringIO()
    display = ConsoleDisplay(Console(file=output, force_terminal=True, width=100))
    display.start(lambda: ShownPosition(step, 100, "1.9/10", 0.0))
    step = 20
    before = len(output.getvalue())
    display.evaluated(OBSERVATION, Decision(OBSERVATION.progress), 0.0)
    printed = plain(output.getvalue()[before:])
    display.stop()
    assert " 9/100" not in printed
    assert "20/100" in printed.split("evaluation 2 at step 20")[1]


def test_a_terminal_that_is_gone_does_not_end_a_training_by_its_bar():
    class Gone(StringIO):
        broken = False

        def write(self, text):
            if self.broken:
                raise OSError("no terminal")
            return super().write(text)

    output = Gone()
    display = ConsoleDisplay(type(ConsoleDisplay()._console)(file=output, force_terminal=True))
    display.start(lambda: ShownPosition(5, None, "1", 0.0))
    display._bar.live._refresh_thread.stop()
    output.broken = True
    display.warn("something")
    output.broken = False
    display.stop()
