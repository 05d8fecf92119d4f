"""Mistakes show the message and the user's own frames, and Ctrl-C ends with where the training resumes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from launching import launch
from torch import nn

import accmt
from accmt import Callback, ConfigError, HyperParameters, load_saving
from accmt.tracebacks import is_mistake

FULL = "ACCMT_FULL_TRACEBACK"
PACKAGE = str(Path(accmt.__file__).parent)

HEAD = """
import signal, sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
from accmt import AcceleratorModule, Callback, FunctionMetric, HyperParameters, Trainer, load_saving

class Line(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(2, 1)

    def training_step(self, batch):
        return (self.model(batch[0]) - batch[1]).square().mean()

    def validation_step(self, key, batch):
        return self.training_step(batch)

torch.manual_seed(0)  # for the same data on all processes
data = TensorDataset(torch.randn(16, 2), torch.randn(16, 1))
folder = sys.argv[1]
"""

MISTAKES = {
    "constructor": 'Trainer({"epochs": 0}, folder)',
    "argument": "Trainer({}, folder, epochs_per_night=1, patience='x')",
    "call": "Trainer()",
    "call of a method": "Trainer({}, folder).register_model_saving()",
    "rule": 'Trainer({}, folder).register_model_saving("best_acc:max")',
    "fit": 'Trainer({}, folder, metrics=FunctionMetric("f1", max, True)).fit(Line(), data, data)',
    "unknown rule": 'one = Trainer({}, folder); one.register_model_saving("acuracy"); one.fit(Line(), data)',
    "data": "Trainer({}, folder).fit(Line(), 5)",
    "evaluate": "Trainer({}, folder).evaluate(Line(), 5)",
    "best": 'Trainer({}, folder).best("x")',
    "stop": "Trainer({}, folder).stop()",
    "load": "load_saving(folder + '/none', Line())",
    "hyperparameters": "HyperParameters(epoch=3)",
    "metric": 'FunctionMetric("f1", max, comparator=">")',
    "no direction": 'FunctionMetric("accuracy", max)',
    "loss": "Line.training_step = lambda self, batch: None; Trainer({}, folder, quiet=True).fit(Line(), data)",
    "no step": "del Line.training_step; Trainer({}, folder, quiet=True).fit(Line(), data)",
}


def frames_in(text):
    """The files of the frames of a traceback, without those that start the program."""
    files = re.findall(r'^  File "(.*?)", line', text, re.MULTILINE)
    return [Path(file).name for file in files if "support" not in file]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows_the_line_of_the_script(tmp_path, mistake):
    ran = launch(HEAD + MISTAKES[mistake], tmp_path / "model")
    assert ran.returncode == 1
    assert frames_in(ran.stderr) == ["program.py"], ran.stderr
    assert MISTAKES[mistake].rpartition("; ")[2] in ran.stderr
    assert "During handling" not in ran.stderr


def test_all_frames_on_request(tmp_path):
    for value, is_full in (("1", True), ("0", False)):
        ran = launch(HEAD + MISTAKES["constructor"], tmp_path / "model", environment={FULL: value})
        assert ("trainer.py" in frames_in(ran.stderr)) == is_full
        assert "epochs: must be a whole number of at least 1" in ran.stderr


def frames_of(error):
    return [(Path(frame.filename).name, frame.name) for frame in traceback.extract_tb(error.__traceback__)]


def test_frames_of_the_user_within_a_training_stay(trainer, regression, data):
    class Careless(regression):
        def get_optimizer(self):
            return HyperParameters(epochs="two")

    with pytest.raises(ConfigError) as caught:
        trainer().fit(Careless(), data(8))
    here = Path(__file__).name
    assert frames_of(caught.value) == [
        (here, "test_frames_of_the_user_within_a_training_stay"),
        (here, "get_optimizer"),
    ]


def test_raised_again_it_stays_short():
    try:
        HyperParameters(epochs=0)
    except ConfigError as error:
        caught = error
    with pytest.raises(ConfigError) as again:
        raise caught
    assert not any(PACKAGE in frame.filename for frame in traceback.extract_tb(again.value.__traceback__))


@pytest.mark.parametrize("kind", [ValueError, AssertionError])
def test_errors_of_the_users_code_show_its_frames(trainer, regression, data, kind):
    class Broken(regression):
        def training_step(self, batch):
            try:
                raise kind("first")
            except kind as error:
                raise kind("mine") from error

    with pytest.raises(kind, match="mine") as caught:
        trainer().fit(Broken(), data(8))
    here = Path(__file__).name
    assert frames_of(caught.value) == [
        (here, "test_errors_of_the_users_code_show_its_frames"),
        (here, "training_step"),
    ]
    assert frames_of(caught.value.__cause__) == [(here, "training_step")]
    assert caught.value.__notes__[0] == "raised in Broken.training_step, epoch 1, step 0"
    assert not is_mistake(caught.value)


class BrokenSamples(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise ValueError("broken sample")


def test_errors_in_a_worker_show_its_frames(trainer, regression):
    with pytest.raises(ValueError, match="broken sample") as caught:
        trainer(dataloader_num_workers=1).fit(regression(), BrokenSamples())
    names = frames_of(caught.value)
    assert names[0] == (Path(__file__).name, "test_errors_in_a_worker_show_its_frames")
    assert names[-1][1] == "reraise"
    assert not any(PACKAGE in frame.filename for frame in traceback.extract_tb(caught.value.__traceback__))
    assert "in __getitem__\n" in str(caught.value)


def test_the_deepest_recursion_stays_the_error_that_is_raised(trainer, regression, data):
    class Endless(regression):
        def training_step(self, batch):
            return self.training_step(batch)

    with pytest.raises(RecursionError) as caught:
        trainer().fit(Endless(), data(8))
    assert caught.value.__context__ is None
    assert any("its batch: " in note for note in caught.value.__notes__)


def test_frames_of_torch_below_the_users_stay_and_all_on_request(trainer, regression, data, monkeypatch):
    class Broken(regression):
        def training_step(self, batch):
            return self.model(batch[0][:, :0])

    with pytest.raises(RuntimeError) as caught:
        trainer().fit(Broken(), data(8))
    here, names = Path(__file__).name, frames_of(caught.value)
    assert names[1] == (here, "training_step")
    assert names[-1] == ("linear.py", "forward")
    assert not any(PACKAGE in frame.filename for frame in traceback.extract_tb(caught.value.__traceback__))
    monkeypatch.setenv(FULL, "1")
    with pytest.raises(RuntimeError) as caught:
        trainer().fit(Broken(), data(8))
    assert ("train.py", "train") in frames_of(caught.value)


def test_frames_of_a_chained_error_that_a_step_raised(trainer, regression, data):
    class Failing(Callback):
        def on_exception(self, exception):
            raise ValueError("second")

    class Broken(regression):
        def training_step(self, batch):
            raise LookupError("first")

    with pytest.raises(ValueError, match="second") as caught:
        trainer(callback=Failing()).fit(Broken(), data(8))
    here = Path(__file__).name
    assert frames_of(caught.value)[1:] == [(here, "on_exception")]
    assert frames_of(caught.value.__context__) == [(here, "training_step")]


@pytest.mark.parametrize("defect", ["{}[batch]", "int('x')", "check(batch)"])
def test_defects_keep_all_frames(trainer, regression, data, monkeypatch, defect):
    """Neither an operation that fails nor an assertion in accmt is a mistake of the user."""
    from accmt.loop import step

    names = {"__file__": step.__file__}
    code = f"def check(batch):\n    assert batch is None\ndef broken(batch, *others):\n    {defect}\n"
    exec(compile(code, step.__file__, "exec"), names)
    monkeypatch.setattr(step, "samples_of", names["broken"])
    with pytest.raises((TypeError, ValueError, AssertionError)) as caught:
        trainer().fit(regression(), data(8))
    assert len(frames_of(caught.value)) > 6


INTERRUPT = (
    HEAD
    + """
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupt(Callback):
    def on_after_training_step(self):
        if self.state.global_step == 5:
            signal.raise_signal(signal.SIGINT)

trainer = Trainer({"epochs": 4, "batch_size": 4}, folder, callback=Interrupt(), quiet="quiet" in sys.argv)
try:
    trainer.fit(Line(), data)
except ZeroDivisionError:
    pass
except KeyboardInterrupt as error:
    if "caught" not in sys.argv:
        raise
    print("caught by the script")
    if "later" in sys.argv:
        raise RuntimeError("later") from None
finally:
    if "prints" in sys.argv:
        print("ends", file=sys.stderr)
"""
)
SENTENCE = "interrupted at step 5; run again to continue from step 4 (1 step is repeated)\n"


@pytest.mark.parametrize("arguments", [(), ("quiet",), ("prints",)])
def test_ctrl_c_ends_with_where_it_resumes(tmp_path, arguments):
    ran = launch(INTERRUPT, tmp_path / "model", *arguments)
    assert ran.returncode == -signal.SIGINT
    assert ran.stderr == ("ends\n" if "prints" in arguments else "") + SENTENCE
    assert ran.stdout.endswith(SENTENCE) == ("quiet" not in arguments)
    assert ran.stdout.count("interrupted") == ("quiet" not in arguments)


def test_ctrl_c_before_the_first_step_shows_the_users_frames(tmp_path):
    slow = "Line.get_optimizer = lambda self: signal.raise_signal(signal.SIGINT)"
    start = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    ran = launch(f"{HEAD}{start}\n{slow}\nTrainer({{}}, folder, quiet=True).fit(Line(), data)", tmp_path / "model")
    assert ran.returncode == -signal.SIGINT
    assert frames_in(ran.stderr) == ["program.py", "program.py"]
    assert ran.stderr.endswith("\nKeyboardInterrupt\n")


def test_a_real_interpreter_ends_by_the_signal(tmp_path):
    command = [sys.executable, "-c", INTERRUPT, tmp_path / "model"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, SENTENCE)


def test_one_pipe_for_both_outputs_gets_the_sentence_once(tmp_path):
    command = [sys.executable, "-c", INTERRUPT, tmp_path / "model"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert ran.returncode == -signal.SIGINT
    assert ran.stdout.endswith("\n" + SENTENCE)
    assert ran.stdout.count("interrupted") == 1


def test_on_a_terminal_the_line_is_the_last_one_and_there_once(tmp_path):
    ours, its = os.openpty()
    command = [sys.executable, "-c", INTERRUPT, tmp_path / "model"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=its, stderr=its) as process:
        os.close(its)
        shown = bytearray()
        with contextlib.suppress(OSError):  # as Linux says that nothing has the terminal open any more
            while read := os.read(ours, 1024):
                shown += read
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")
    assert process.returncode == -signal.SIGINT
    assert text.endswith("\n" + SENTENCE)
    assert text.count("interrupted") == 1


def test_of_several_processes_the_main_one_says_it(tmp_path):
    ran = launch(INTERRUPT, tmp_path / "model", processes=2)
    assert ran.returncode == -signal.SIGINT
    assert ran.stderr.count("interrupted at step") == 1
    assert "Traceback" not in ran.stderr


def test_a_script_that_catches_ctrl_c_decides_itself(tmp_path):
    ran = launch(INTERRUPT, tmp_path / "model", "caught")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith(f"{SENTENCE}caught by the script\n")
    ran = launch(INTERRUPT, tmp_path / "other", "caught", "later")
    assert ran.returncode == 1
    assert ran.stderr.endswith("RuntimeError: later\n")
    assert "Traceback" in ran.stderr


def test_ctrl_c_with_all_frames(tmp_path):
    ran = launch(INTERRUPT, tmp_path / "model", environment={FULL: "yes"})
    assert ran.returncode == -signal.SIGINT
    assert {"trainer.py", "supervise.py"} <= set(frames_in(ran.stderr))


def test_a_second_ctrl_c_while_the_first_is_handled(tmp_path):
    ran = launch(INTERRUPT.replace("class Interrupt(Callback):", TWICE), tmp_path / "model")
    assert ran.returncode == -signal.SIGINT
    assert ran.stderr == SENTENCE
    assert ran.stdout.endswith(SENTENCE)


TWICE = """class Interrupt(Callback):
    def on_keyboard_interrupt(self, exception):
        signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_in_a_search(tmp_path):
    pytest.importorskip("optuna")
    ran = launch(HEAD + SEARCH, tmp_path / "model")
    assert ran.returncode == -signal.SIGINT
    assert ran.stderr == ("interrupted; run again to continue the study, if it has a storage and load_if_exists=True\n")
    assert "interrupted at step" not in ran.stdout


SEARCH = """
from accmt import HyperParameterSearch
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt(Callback):
    def on_after_training_step(self):
        signal.raise_signal(signal.SIGINT)
HyperParameterSearch(Line, data, data, callback=Interrupt()).optimize(n_trials=2)
"""


def test_where_ctrl_c_stays_an_exception_it_is_short(trainer, regression, data, capsys):
    """As in a notebook, which shows the traceback of what a cell raises."""

    class Interrupt(Callback):
        def on_after_training_step(self):
            raise KeyboardInterrupt

    hook = sys.excepthook
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            trainer(callback=Interrupt()).fit(regression(), data(8))
    finally:
        sys.excepthook = hook
    assert not any(PACKAGE in frame.filename for frame in traceback.extract_tb(caught.value.__traceback__))
    assert "interrupted at step 0; there is no checkpoint yet" in capsys.readouterr().out


def test_ctrl_c_outside_of_a_training_is_that_of_python(tmp_path):
    ran = launch("raise KeyboardInterrupt", tmp_path)
    assert ran.returncode == -signal.SIGINT
    assert ran.stderr.endswith("KeyboardInterrupt\n")


def test_the_warning_of_a_function_names_the_line_that_called_it(trainer, regression, data, tmp_path):
    class Two(regression):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 1)

        def training_step(self, batch):
            return self.head(self.model(batch[0])).square().mean()

        def get_optimizer(self):
            return torch.optim.SGD([*self.model.parameters(), *self.head.parameters()], lr=0.01)

    training = trainer()
    training.fit(Two(), data(8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_saving(training.best("best_train_loss").folder, Two().model)
    assert [(Path(one.filename).name, "trained alongside" in str(one.message)) for one in caught] == [
        (Path(__file__).name, True)
    ]
