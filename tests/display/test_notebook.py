"""What notebooks show: a bar in one output, and tables in which every text is escaped."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from torch import nn

from accmt import TrainingHistory
from accmt.checkpoint.saved_models import SavedModel
from accmt.display.display import ConsoleDisplay
from accmt.display.notebook import Decisions, NotebookBar, notebook_shell
from accmt.html_tables import html_table
from accmt.rules import Decision, Observation, Outcome, Progress, Stop, Verdict

EVIL = "<script>alert('x')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"


class ZMQInteractiveShell:
    """A shell of IPython, as a kernel has it, and what was published."""

    def __init__(self):
        self.display_pub = self
        self.published = []

    def publish(self, *, data, transient, update):
        self.published.append((data, transient["display_id"], update))


class ColabShell(ZMQInteractiveShell):
    """A shell that derives from it."""


class TerminalInteractiveShell:
    """The shell of `ipython` on a terminal."""


@pytest.fixture
def shell(monkeypatch):
    """The process is the kernel of a notebook."""
    shell = ColabShell()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    return shell


@pytest.mark.parametrize(("kind", "is_one"), [(ColabShell, True), (TerminalInteractiveShell, False), (None, False)])
def test_what_a_notebook_is(monkeypatch, kind, is_one):
    shell = None if kind is None else kind()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert notebook_shell() is (shell if is_one else None)


def test_ipython_is_not_imported():
    program = (
        "import sys; from accmt.display.display import display_of; display_of(is_main=True, quiet=False).show('x'); "
        "print({'IPython', 'matplotlib'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "x\nset()\n"


def test_a_training_has_one_output(shell, trainer, regression, data, capsys):
    trainer(epochs=2, log_every=1).fit(regression(), data(12), data(4))
    first, *updates = shell.published
    assert not first[2]
    assert all(update for _, _, update in updates)
    assert len({display_id for _, display_id, _ in shell.published}) == 1
    last = shell.published[-1][0]
    assert re.fullmatch(r"epoch 2/2  6/6  loss .* lr 0.05", last["text/plain"])
    assert f'<progress value="6" max="6"></progress> {last["text/plain"]}' in last["text/html"]
    printed = capsys.readouterr().out
    assert "evaluation 2 at step 6" in printed
    assert "6/6" not in printed


def test_quiet_is_quiet(shell, trainer, regression, data, capsys):
    trainer(quiet=True).fit(regression(), data(8))
    assert shell.published == []
    assert capsys.readouterr().out == ""


def test_warnings_are_lines(shell, capsys):
    ConsoleDisplay().warn("metric [red]f1[/red] is nan")
    assert capsys.readouterr().out == "\x1b[33mwarning: metric [red]f1[/red] is nan\x1b[0m\n"
    assert shell.published == []


def test_long_lines_are_broken_between_words(shell, tmp_path, capsys):
    """A browser would break them anywhere, also in paths."""
    path = tmp_path / ("folder" * 20)
    ConsoleDisplay().warn(f"{'a few words ' * 10}and '{path}' exists")
    lines = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out).splitlines()
    assert len(lines) > 2
    assert lines[0].endswith(" a few")
    assert any(str(path) in line for line in lines)


def test_the_bar_of_a_training_of_unknown_length_is_a_text(shell):
    bar = NotebookBar(shell, lambda loss: (3, None, f"step 3 {EVIL}"))
    bar.start()
    bar.stop()
    ((data, _, update),) = shell.published  # nothing changed, so nothing was drawn again
    assert not update
    assert "<progress" not in data["text/html"]
    assert f"step 3 {ESCAPED}" in data["text/html"]


def test_the_bar_follows_from_a_thread(shell):
    steps = iter(range(1000))
    bar = NotebookBar(shell, lambda loss: (next(steps), 1000, "step"))
    bar.start()
    try:
        while len(shell.published) < 3:
            pass
    finally:
        bar.stop()
    assert '<progress value="2" max="1000">' in shell.published[2][0]["text/html"]


def test_texts_of_users_are_escaped(trainer, regression, tmp_path):
    progress = Progress(step=2, epoch=1, evaluation=1)
    verdict = Verdict(EVIL, (0.5,), None, Outcome.SAVED, EVIL)
    stop = Decision(progress, stop=Stop(EVIL, EVIL))
    decisions = Decisions([Decision(progress, (verdict,)), stop])
    history = TrainingHistory.of((Observation(progress, {EVIL: {EVIL: 0.5}}),), decisions)

    class Evil(regression):
        def __init__(self):
            super().__init__()
            self.model = type(EVIL, (nn.Linear,), {})(2, 1)

    training = trainer(EVIL.replace("/", "-"))
    saved = SavedModel(EVIL, {EVIL: 0.5}, 2, 1, tmp_path / "<i>")
    for one in (decisions, history, Evil(), training, saved):
        text = one._repr_html_()
        assert ESCAPED in text or "&lt;script" in text
        assert not re.search(r"<(script|i)>", text)
    assert "\x1b" not in html_table("\x1b[2J", ["\x1b"], [["\x1b"]])


def test_trainer_and_module_before_and_after(trainer, regression, data):
    training, module = trainer(), regression()
    assert repr(training) == f"Trainer('{training.model_path}', rules: by default, step 0)"
    assert repr(module) == "Regression(Sequential, 49 parameters)"
    assert repr(object.__new__(regression)) == "Regression(no model yet)"
    assert "model.0" not in object.__new__(regression)._repr_html_()
    module.head = nn.Linear(2, 2)
    module.freeze(module.head)
    assert re.search(r">model\.0<.*>Linear<.*>40<.*>40<.*>160<.*>head<.*>Linear<.*>6<.*>0<", module._repr_html_())
    training.fit(module, data(8), data(4))
    assert repr(training) == f"Trainer('{training.model_path}', rules: best_valid_loss, step 4)"
    assert f">{training.state.model_savings['best_valid_loss'][0]:.6g}<" in training._repr_html_()


def test_decisions_are_a_list(trainer, regression, data):
    training = trainer()
    assert training.decisions == []
    assert repr(training.decisions) == "Decisions(0)"
    training.fit(regression(), data(8), data(4))
    assert isinstance(training.decisions, list)
    assert [decision.progress.step for decision in training.decisions[:2]] == [2, 4]
    assert repr(training.decisions) == "Decisions(2, the last at step 4)"
    assert "is the first, saved" in training.decisions._repr_html_()


def test_long_tables_show_their_end():
    text = html_table("T", ["n", "x"], [[number, None] for number in range(1000, 1051)])
    assert "the last 50 of 51 rows" in text
    assert ">1,050<" in text
    assert ">1,000<" not in text
    assert "rows" not in html_table("T", ["n"], [[number] for number in range(50)])


def test_values_that_are_missing_or_no_numbers():
    observations = tuple(
        Observation(
            Progress(step=step, evaluation=step), {"a": {"f1": value}} if value else {}, train_loss=float("nan")
        )
        for step, value in ((1, None), (2, 0.123456789))
    )
    text = TrainingHistory(observations)._repr_html_()
    assert text.count(">nan<") == 2
    assert ">0.123457<" in text
    assert re.search(r"text-align: left\"></td>", text)
