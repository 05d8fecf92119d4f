"""What a training survives: a model that cannot be written, a tracker that fails, a start anew that is interrupted."""

import json

import pytest
import torch

from accmt import Callback, FunctionMetric
from accmt.distributed.collective import Failed


class Scores:
    """A module whose accuracy at each evaluation is given."""

    def __new__(cls, regression, scores):
        class Scored(regression):
            def validation_step(self, key, batch):
                score = scores[self.state.evaluations_done]
                return {"loss": torch.tensor(1.0), "accuracy": torch.full((len(batch[0]),), score)}

        return Scored()


ACCURACY = FunctionMetric("accuracy", lambda values: values.mean(), greater_is_better=True)


def fail_once(monkeypatch, times):
    """Make the first `times` savings fail as on a full disk."""
    real, left = torch.save, [times]

    def save(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "save", save)


def test_a_model_that_could_not_be_written_does_not_count_as_saved(trainer, regression, data, monkeypatch, capsys):
    fail_once(monkeypatch, 1)
    training = trainer(epochs=3, metrics=ACCURACY)
    training.register_model_saving("best_accuracy")
    training.fit(Scores(regression, [0.9, 0.8, 0.85]), data(8), data(4))
    outcomes = [decision.verdicts[0].outcome.value for decision in training.decisions]
    assert outcomes == ["failed", "saved", "saved"]
    assert training.best("accuracy").values == {"accuracy": pytest.approx(0.85)}
    assert "warning: best_accuracy could not be saved at step 2: OSError: [Errno 28]" in capsys.readouterr().out
    assert not list(training.model_path.glob(".tmp-*"))


def test_twice_in_a_row_ends_the_training(trainer, regression, data, monkeypatch):
    fail_once(monkeypatch, 2)
    training = trainer(epochs=3, metrics=ACCURACY)
    training.register_model_saving("best_accuracy")
    with pytest.raises(Failed, match="No space left on device"):
        training.fit(Scores(regression, [0.7, 0.8, 0.9]), data(8), data(4))


def test_a_tracker_that_fails_is_one_warning(trainer, regression, data, monkeypatch, capsys):
    from accmt.tracking import mlflow

    class Down:
        def __init__(self, *arguments, **options):
            pass

        def log(self, values, step):
            raise ConnectionError("refused")

        def state(self):
            return {}

        def close(self, status):
            raise ConnectionError("refused")

    monkeypatch.setattr(mlflow, "MlflowTracker", Down)
    training = trainer(log_with="mlflow")
    training.fit(regression(), data(8), data(4))
    assert training.state.finished
    assert capsys.readouterr().out.count("the tracker rejects the values: ConnectionError: refused") == 1


def test_a_start_anew_is_never_taken_for_the_earlier_training(trainer, regression, data):
    class Interrupt(Callback):
        def on_after_optimizer_step(self, optimizer):
            raise KeyboardInterrupt

    trainer().fit(regression(), data(8))
    with pytest.raises(KeyboardInterrupt):
        trainer(resume=False, callback=Interrupt()).fit(regression(), data(8))
    again = trainer()
    again.fit(regression(), data(8))
    assert [decision.progress.step for decision in again.decisions] == [2, 4]
    aside = again.model_path / "earlier-1"
    assert [path.name for path in (aside / "checkpoints").iterdir()] == ["checkpoint-0002-step-4"]
    assert len((aside / "history.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_says_where_it_goes_on(trainer, regression, data, capsys):
    class Interrupt(Callback):
        def on_after_optimizer_step(self, optimizer):
            if self.state.global_step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(epochs=3, callback=Interrupt()).fit(regression(), data(16))
    assert "interrupted at step 5; run again to continue from step 4 (1 step is repeated)" in capsys.readouterr().out


def test_changed_data_is_said(trainer, regression, data, capsys):
    trainer().fit(regression(), data(8))
    capsys.readouterr()
    longer = trainer(epochs=4)
    longer.fit(regression(), data(16))
    assert "an epoch had 2 steps and now has 4" in capsys.readouterr().out
    history = (longer.model_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == [2, 4, 8, 12]
