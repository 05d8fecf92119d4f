"""A training that has ended holds nothing, however it ended: no thread, no descriptor."""

import gc
import os
import threading

import pytest

from accmt import Callback
from accmt.checkpoint import publish
from accmt.hyperparameters import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Ends(Callback):
    """Ends the training in a hook; its `on_exception` raises too, if it is told to."""

    def __init__(self, error=None, hook="on_before_training_step", again=False):
        super().__init__()
        self.error, self.again, self.told = error, again, []
        self.__class__ = type("Ends", (Ends,), {hook: Ends.end})

    def end(self, *arguments):
        if self.error is not None and self.state.global_step in (3, 8):
            raise self.error

    def on_exception(self, exception):
        self.told.append(type(exception).__name__)
        if self.again:
            raise ValueError("a hook fails as well")


def held():
    """The threads and descriptors of this process; a descriptor by what it leads to."""
    threads = sorted(thread.name for thread in threading.enumerate())
    files = []
    for number in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return threads, sorted(files)


ENDS = {
    "by itself": (None, "on_before_training_step", None),
    "an error in a step": (ValueError("mine"), "on_before_training_step", ValueError),
    "Ctrl-C": (KeyboardInterrupt(), "on_before_training_step", KeyboardInterrupt),
    "sys.exit in a step": (SystemExit(3), "on_before_training_step", SystemExit),
    "an error in an evaluation": (ValueError("mine"), "on_before_validation_step", ValueError),
    "an error at the end": (RuntimeError("mine"), "on_fit_end", RuntimeError),
    "an error while a checkpoint is told of": (ValueError("mine"), "on_save_checkpoint", ValueError),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_held_after_a_training(trainer, regression, data, end):
    """With a tracker, and checkpoints in the background."""
    pytest.importorskip("tensorboard")
    error, hook, raised = ENDS[end]
    arguments = {
        "log_with": "tensorboard",
        "checkpoint_async": True,
        "checkpoint_every": "2 steps",
        "evaluate_every": "3 steps",
        "quiet": True,
    }
    trainer("warm", logging_dir=str(trainer("warm").model_path / "logs"), **arguments).fit(
        regression(), data(16), data(4)
    )  # what libraries keep from their first use on
    training = trainer(
        "kept", callback=Ends(error, hook), logging_dir=str(trainer("kept").model_path / "logs"), **arguments
    )
    before = held()
    if raised is None:
        training.fit(regression(), data(16), data(4))
    else:
        with pytest.raises(raised) as caught:
            training.fit(regression(), data(16), data(4))
        assert caught.value is error  # whose traceback is kept meanwhile
    assert held() == before


def test_sys_exit_is_told_like_other_ends(trainer, regression, data):
    ends = Ends(SystemExit(3))
    with pytest.raises(SystemExit) as caught:
        trainer(callback=ends).fit(regression(), data(16))
    assert caught.value.code == 3
    assert ends.told == ["SystemExit"]


def test_a_training_leaves_no_threads_and_no_frozen_objects(trainer, regression, data):
    gc.unfreeze()  # what the tests have frozen
    trainer().fit(regression(), data(16), data(4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("flush", "save"))]
    assert gc.get_freeze_count() == 0
    gc.freeze()


def test_a_checkpoint_that_is_written_is_waited_for_at_sys_exit(trainer, regression, data, monkeypatch):
    real, begun = publish.publish, []

    def slow(*arguments):
        begun.append(threading.current_thread())
        threading.Event().wait(0.3)
        real(*arguments)

    monkeypatch.setattr(publish, "publish", slow)
    training = trainer(callback=Ends(SystemExit(0)), checkpoint_async=True, checkpoint_every="3 steps")
    with pytest.raises(SystemExit):
        training.fit(regression(), data(16))
    assert len(begun) == 1
    assert not begun[0].is_alive()
    assert len(list((training.model_path / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("place", ["prepare", "the checks", "the start", "on_exception"])
def test_nothing_is_held_after_a_failure_before_the_first_step(trainer, regression, data, monkeypatch, place):
    pytest.importorskip("tensorboard")

    class Unprepared(regression):
        @property
        def tracker(self):
            return self._tracker

        @tracker.setter
        def tracker(self, tracker):
            self._tracker = tracker
            if type(tracker).__name__ == "BackgroundTrackers":
                raise RuntimeError("while it is put together")

    folder = str(trainer("warm").model_path / "logs")
    trainer("warm", log_with="tensorboard", logging_dir=folder).fit(regression(), data(4))
    training = trainer("kept", log_with="tensorboard", logging_dir=folder, metrics=None)
    before = held()
    if place == "the checks":
        with pytest.raises(ConfigError):
            training.fit(regression(), None)
    elif place == "the start":
        monkeypatch.setattr("accmt.setup.resume._cleared", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            training.fit(regression(), data(4))
    elif place == "prepare":
        with pytest.raises(RuntimeError, match="put together"):
            training.fit(Unprepared(), data(4))
    else:
        ends = Ends(KeyError("mine"), again=True)
        with pytest.raises(ValueError, match="a hook fails as well"):
            trainer("kept", log_with="tensorboard", logging_dir=folder, callback=ends).fit(regression(), data(16))
    assert held() == before


@pytest.mark.parametrize("arguments", [{"enable_checkpointing": False}, {"checkpoint_every": None}])
def test_an_interruption_without_checkpoints_says_that_they_are_off(trainer, regression, data, capsys, arguments):
    class Interrupt(Callback):
        def on_after_training_step(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(callback=Interrupt(), **arguments).fit(regression(), data(8))
    assert "interrupted at step 0; checkpoints are off: run again to start from scratch" in capsys.readouterr().out
