"""`log.jsonl`: what happened between evaluations."""

import json
import os

import pytest

from accmt import Callback
from accmt.notices import heard_by
from accmt.tracking.step_log import LogLine, StepLog, read_log


class Asks(Callback):
    """Sends SIGUSR1 to its own process after a step."""

    def on_after_optimizer_step(self, optimizer):
        if self.state.global_step == 3:
            os.kill(os.getpid(), 10)


def told(folder):
    return [(line.event, line.step, line.text) for line in read_log(folder / "log.jsonl") if line.event]


def test_what_a_training_logs(trainer, regression, data):
    training = trainer(log_every=2, callback=Asks())
    training.fit(regression(), data(16), data(4))
    lines = read_log(training.model_path / "log.jsonl")
    values = [line for line in lines if line.values]
    assert [line.step for line in values] == [2, 4, 6, 8]
    assert set(values[1].values) == {"train_loss", "learning_rate", "grad_norm", "seconds_per_step"}
    assert values[0].values["learning_rate"] == 0.05
    events = told(training.model_path)
    assert ("SIGUSR1", 4, "") in events or ("SIGUSR1", 3, "") in events or ("SIGUSR1", 5, "") in events
    assert events[-1] == ("FINISHED", 8, "")


def test_how_it_ends_and_resumes(trainer, regression, data, tmp_path):
    class Fails(Callback):
        def on_after_optimizer_step(self, optimizer):
            if self.state.global_step == 3:
                raise ValueError("no more of http://me:secret@host")

    with pytest.raises(ValueError, match="no more"):
        trainer(callback=Fails(), log_every=1).fit(regression(), data(8), data(4))
    assert told(tmp_path / "model")[-1] == ("FAILED", 3, "ValueError: no more of http://host")
    with (tmp_path / "model" / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')  # cut off
    trainer(log_every=1).fit(regression(), data(8), data(4))
    assert ("resumed", 2, "checkpoint-0001-step-2") in told(tmp_path / "model")
    steps = [line.step for line in read_log(tmp_path / "model" / "log.jsonl") if line.values]
    assert steps == [1, 2, 3, 4]
    trainer(log_every=1, resume=False, epochs=1).fit(regression(), data(8), data(4))
    assert [line.step for line in read_log(tmp_path / "model" / "log.jsonl") if line.values] == [1, 2]


def test_lines_of_steps_that_are_repeated_are_skipped(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [LogLine(1, 0.0, {"a": 1.0}), LogLine(2, 0.0, {"a": 2.0}), LogLine(2, 0.0, {}, "KILLED")]
    lines += [LogLine(1, 0.0, {}, "resumed"), LogLine(2, 0.0, {"a": float("nan")})]
    path.write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines) + "no\n[]\n")
    assert [(line.step, line.event) for line in read_log(path)] == [(1, ""), (2, "KILLED"), (1, "resumed"), (2, "")]
    assert read_log(tmp_path / "nothing") == ()


def test_what_cannot_be_written_is_said_once(tmp_path):
    heard = []
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "elsewhere")
    log = StepLog(tmp_path / "log.jsonl", writes=True)
    with heard_by(heard.append):
        log.add_event(1, "checkpoint")
        log.add_event(2, "checkpoint")
    why = "it is a link, and must be a file"
    assert heard == [f"{tmp_path}/log.jsonl is not written any more ({why}): reports will lack what follows"]
    assert not (tmp_path / "elsewhere").exists()
    StepLog(tmp_path / "other.jsonl", writes=False).add_event(1, "checkpoint")
    assert not (tmp_path / "other.jsonl").exists()
