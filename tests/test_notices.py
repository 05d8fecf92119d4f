"""Warnings have one channel, the display: the same on every process, whatever Python's filters say."""

import ast
from pathlib import Path
from threading import Thread

import pytest

import accmt
from accmt.checkpoint.lock import Lock
from accmt.display.display import ConsoleDisplay, Display, QuietDisplay, display_of
from accmt.notices import heard_by, warn

PACKAGE = Path(accmt.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_nothing_warns_past_the_channel():
    """Neither by Python's warnings, nor by logging (a filter or a level would make processes differ), nor on a display.

    Only `notices.warn` may be called, by its plain name."""
    calls = {
        f"{path.relative_to(PACKAGE)}:{ast.unparse(node.func)}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("warn", "warn_explicit", "warning")
    }
    assert len(SOURCES) > 100
    assert calls == {
        "notices.py:warnings.warn",  # while no training shows it
        "trainer.py:display_of(is_main=PartialState().is_main_process, quiet=self._options.quiet).warn",  # the listener
        "display/display.py:ConsoleDisplay().warn",
    }


def test_what_is_said_goes_to_the_training_that_runs_and_else_to_python():
    said = []
    with heard_by(said.append):
        warn("within")
        thread = Thread(target=warn, args=("on a thread",))
        thread.start()
        thread.join()
    assert said == ["within", "on a thread"]
    with pytest.warns(UserWarning, match="^outside$"):
        warn("outside")


def test_who_shows():
    assert type(display_of(is_main=True, quiet=False)) is ConsoleDisplay
    assert type(display_of(is_main=True, quiet=True)) is QuietDisplay
    assert type(display_of(is_main=False, quiet=False)) is Display


@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_known_before_the_first_step_is_a_warning_also_if_it_is_quiet(
    trainer, regression, data, error_metric, capsys, quiet
):
    trainer(metrics=error_metric(), quiet=quiet, epochs=1).fit(regression(), data(8))
    said = "warning: there are no validation data: metrics have no effect\n"
    assert capsys.readouterr().out.count(said) == 1


def test_a_file_system_without_locks_is_said_once(trainer, regression, data, monkeypatch, capsys):
    acquire = Lock.acquire
    monkeypatch.setattr(Lock, "acquire", lambda lock: acquire(lock) or "it cannot be locked")
    trainer(quiet=True, epochs=1).fit(regression(), data(8))
    assert capsys.readouterr().out == "warning: it cannot be locked\n"


def test_a_line_that_waits_is_said_once(trainer, regression, data, monkeypatch, capsys):
    written, failed = [], []

    def fails(journal, lines):
        if journal.path.name == "history.jsonl" and not failed:
            failed.append(lines)
            raise OSError(28, "No space left on device")
        written.append(lines)

    monkeypatch.setattr("accmt.tracking.journal.Journal._write", fails)
    training = trainer(quiet=True, sanity_check=False)
    training.fit(regression(), data(8), data(4))
    path = training.model_path / "history.jsonl"
    assert capsys.readouterr().out == f"warning: {path}: line 1 waits to be written: No space left on device\n"
    assert [lines.startswith(failed[0]) for lines in written].count(True) == 1
