"""What holds between evaluations: limits, stops that the script asks for, training metrics, and texts for log_every."""

import json
import math
import threading
import time
import warnings

import pytest
import torch
from torch import nn

from accmt import AcceleratorModule, Callback, ExtendedAcceleratorModule, Trainer
from accmt.hyperparameters import ConfigError
from accmt.loop.progress import Stopwatch
from accmt.rules import RuleError
from accmt.tracking.journal import read


class Slow(AcceleratorModule):
    """A linear model whose steps take a little while; the loss is NaN from a step on."""

    def __init__(self, seconds=0.0, nan_from=math.inf):
        self.model = nn.Linear(4, 1)
        self.seconds, self.nan_from = seconds, nan_from

    def training_step(self, batch):
        time.sleep(self.seconds)
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        return loss * float("nan") if self.state.global_step >= self.nan_from else loss

    def validation_step(self, key, batch):
        return {"loss": nn.functional.mse_loss(self.model(batch[0]), batch[1])}


@pytest.fixture
def fit(tmp_path, data):
    """Train 100 steps an epoch and give the trainer."""

    def fit(module, epochs=1, validation=False, path="model", **arguments):
        arguments = {"dataloader_num_workers": 0, "quiet": True, "checkpoint_every": None, **arguments}
        training = Trainer({"epochs": epochs, "batch_size": 2}, tmp_path / path, **arguments)
        training.fit(module, data(200), data(6) if validation else None)
        return training

    return fit


@pytest.mark.parametrize(
    ("condition", "step", "log_every"),
    [
        ("step >= 37", 37, -1),
        ("step >= 37", 37, None),
        ("step >= 37", 37, 30),
        ("step > 37 or elapsed > 9 hours", 38, "7 seconds"),
        ("37 < step and epoch < 1", 38, -1),
        ("step == 41", 41, -1),
        ("step > 12.5%", 13, -1),
        ("step - 100 * epoch > 40", 41, -1),
        ("valid_loss < -1 or step > 37", 38, -1),
    ],
)
def test_counters_are_asked_at_every_step(fit, log_every, condition, step):
    training = fit(Slow(), validation=True, log_every=log_every, stop_when=condition, evaluate_every="99 steps")
    assert training.state.global_step == step
    assert [d.progress.step for d in training.decisions if d.stop] == [step, step]
    assert training.decisions[0].stop.asked_by == condition


@pytest.mark.parametrize("condition", ["elapsed > 0.4 seconds", "train_loss < 0 or elapsed * 2 > 0.8"])
def test_a_time_limit_is_kept_to_a_step_or_a_second(fit, monkeypatch, condition):
    module = Slow()
    monkeypatch.setattr(Stopwatch, "elapsed", lambda self: 0.03 * module.state.global_step if module.state else 0.0)
    training = fit(module, stop_when=condition)
    assert 0.4 < training.decisions[0].progress.elapsed < 1.44
    assert training.state.global_step < 49


@pytest.mark.parametrize("condition", ["train_loss is nan", "epoch > 5 or train_loss is nan"])
def test_losses_are_looked_at_about_once_a_second(fit, condition):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = fit(Slow(0.02, nan_from=5), stop_when=condition)
    assert training.state.global_step < 80
    assert training.decisions[0].stop.asked_by == condition


def test_a_look_changes_no_mean(fit):
    """The sums of the logs and the evaluations are rounded as without it."""
    torch.manual_seed(0)
    plain = fit(Slow(0.012), path="plain", validation=True)
    torch.manual_seed(0)
    watched = fit(Slow(0.012), path="watched", validation=True, stop_when="train_loss > 1e9")
    losses = [
        [(line["train_loss"], line["values"]) for line in read(t.model_path / "history.jsonl")]
        for t in (plain, watched)
    ]
    assert losses[0] == losses[1]


def test_a_condition_that_a_resume_finds_true_ends_it_at_once(fit):
    fit(Slow(), epochs=2, checkpoint_every="30 steps", stop_when="step >= 60")
    again = fit(Slow(), epochs=2, checkpoint_every="30 steps", stop_when=["step > 45"])
    assert again.state.global_step == 60


class Asks(Callback):
    def __init__(self, hook, step, reason="enough"):
        super().__init__()

        def ask(*arguments):
            if self.state.global_step >= step:
                self.trainer.stop(reason)

        setattr(type(self), hook, lambda self, *arguments: ask(*arguments))


@pytest.mark.parametrize(
    ("hook", "step", "evaluations"),
    [
        ("on_after_training_step", 41, [41]),
        ("on_before_zero_grad", 41, [41]),
        ("on_after_optimizer_step", 41, [41]),
        ("on_evaluation_end", 90, [45, 90]),
        ("on_evaluation_start", 90, [45, 90]),
        ("on_epoch_end", 100, [45, 90, 100]),
        ("on_fit_start", 1, [1]),
    ],
)
def test_a_callback_stops_the_training(fit, hook, step, evaluations):
    callback = type("Asking", (Asks,), {})(
        hook, 0 if hook in ("on_fit_start", "on_epoch_end") else 40 if step < 90 else 50
    )
    training = fit(
        Slow(), epochs=3, validation=True, callback=callback, evaluate_every="45 steps", checkpoint_every="epoch"
    )
    assert (training.state.global_step, training.state.finished) == (step, True)
    assert [d.progress.step for d in training.decisions if d.verdicts] == evaluations
    [stop] = [d for d in training.decisions if d.stop]
    assert (stop.progress.step, stop.stop.asked_by, stop.stop.reason) == (step, "trainer.stop", "enough")
    assert [line["stop"] for line in read(training.model_path / "decisions.jsonl") if line["stop"]] == [
        {"asked_by": "trainer.stop", "reason": "enough"}
    ]


def test_a_module_stops_the_training_and_another_start_goes_on(fit):
    class Stopping(Slow):
        def training_step(self, batch):
            if self.state.global_step == 20:
                self.trainer.stop("the module has seen enough")
            return super().training_step(batch)

    first = fit(Stopping(), checkpoint_every="epoch")
    assert first.state.global_step == 21
    second = fit(Stopping(), checkpoint_every="epoch")
    assert second.state.global_step == 100
    assert [d.progress.step for d in second.decisions if d.stop] == [21]


def test_another_thread_stops_the_training(fit, tmp_path):
    class Starts(Callback):
        def on_before_training_step(self, batch):
            if self.state.global_step == 20:
                thread = threading.Thread(target=self.trainer.stop, args=("a button",))
                thread.start()
                thread.join()

    training = fit(Slow(), callback=Starts())
    assert 20 <= training.state.global_step < 30
    assert training.decisions[-1].stop.reason == "a button"


def test_what_stop_refuses(fit):
    training = fit(Slow(), epochs=1)
    with pytest.raises(RuntimeError, match="nothing is being trained"):
        training.stop("now")
    with pytest.raises(TypeError, match="must be a string, not int"):
        training.stop(3)
    with pytest.raises(ValueError, match="is empty"):
        training.stop(" ")


def test_a_module_has_its_trainer_and_is_pickled_without_it(fit):
    import copy
    import pickle

    module = Slow()
    assert module.trainer is None
    training = fit(module)
    assert module.trainer is training
    assert copy.deepcopy(module).trainer is None
    assert pickle.loads(pickle.dumps(module)).trainer is None
    module.trainer = "mine"
    fit(module, path="other")
    assert module.trainer == "mine"


class Logging(Slow):
    """Logs the number of the step, and in evaluations something that must not count."""

    def training_step(self, batch):
        if self.state.global_step % 2 == 0:
            self.log({"kl": torch.tensor(float(self.state.global_step)), "other": 1.0}, self.state.global_step)
        return super().training_step(batch)

    def validation_step(self, key, batch):
        self.log({"kl": 1e9}, self.state.global_step)
        return super().validation_step(key, batch)


@pytest.mark.parametrize("log_every", [-1, None, 3, "3 seconds"])
def test_training_metrics_are_means_since_the_previous_evaluation(fit, log_every):
    arguments = {"evaluate_every": "10 steps", "training_metrics": {"kl": "max"}, "log_every": log_every}
    training = fit(Logging(), validation=True, stop_when="step >= 30", eval_when_start=True, **arguments)
    history = read(training.model_path / "history.jsonl")
    assert [line.get("training") for line in history] == [None, {"kl": 4.0}, {"kl": 14.0}, {"kl": 24.0}]


def test_rules_and_conditions_use_training_metrics(tmp_path, data):
    arguments = {"training_metrics": {"kl": "max"}, "evaluate_every": "10 steps", "dataloader_num_workers": 0}
    training = Trainer({"epochs": 1, "batch_size": 2}, tmp_path / "m", stop_when="kl > 30", quiet=True, **arguments)
    training.register_model_saving("best_kl then max(step)", saving_above=10)
    training.fit(Logging(), data(200), data(6))
    assert training.state.global_step == 40
    assert [d.progress.step for d in training.decisions if d.saved] == [20, 30, 40]


@pytest.mark.parametrize("stopped", [7, 10, 13, 20])
def test_training_metrics_are_exact_after_a_resume(fit, stopped):
    arguments = {"evaluate_every": "10 steps", "training_metrics": {"kl": "max"}, "checkpoint_every": "epoch"}
    arguments |= {"validation": True, "shuffle_train": False}

    def lines(training):
        return [{**line, "elapsed": 0} for line in read(training.model_path / "history.jsonl")]

    torch.manual_seed(0)
    whole = fit(Logging(), path="whole", **arguments, eval_when_finish=False, stop_when="step >= 30")
    torch.manual_seed(0)
    fit(Logging(), path="parts", **arguments, eval_when_finish=False, stop_when=f"step >= {stopped}")
    parts = fit(Logging(), path="parts", **arguments, eval_when_finish=False, stop_when="step >= 30")
    assert lines(parts) == lines(whole)


def test_a_step_that_accumulates_or_repeats_counts_each_batch_once(fit):
    class Repeats(Slow):
        failed = False

        def training_step(self, batch):
            self.log({"kl": float(self.state.train_step)}, 0)
            if self.state.train_step == 3 and not self.failed:
                self.failed = True
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().training_step(batch)

    arguments = {"training_metrics": {"kl": "min"}, "grad_accumulation_steps": 2, "evaluate_every": "5 steps"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = fit(Repeats(), validation=True, stop_when="step >= 5", **arguments)
    assert read(training.model_path / "history.jsonl")[0]["training"] == {"kl": 4.5}


def test_a_training_metric_that_is_not_logged_is_said(fit, capsys):
    fit(Slow(), training_metrics={"kl": "min"})
    assert (
        "the training metric 'kl' was not logged since the last evaluation: call self.log(" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"training_metrics": ["kl"]}, "training_metrics: must be a dictionary"),
        ({"training_metrics": {"kl": "lower"}}, 'must be "min" or "max", for which way is better'),
        ({"training_metrics": {"kl": True}}, 'must be "min" or "max", for which way is better'),
        ({"training_metrics": {"train_loss": "min"}}, "is reserved for a loss"),
        ({"training_metrics": {3: "min"}}, "its name must be a string"),
        ({"log_every": "2 evaluations"}, "logs cannot be counted in evaluations"),
        ({"log_every": "10 secnds"}, "unknown unit 'secnds'"),
        ({"log_every": "0.5"}, "a unit is missing"),
        ({"training_metrics": {"kl": "min"}, "stop_when": "kl@dev < 1"}, "'kl' has no dataset"),
        (
            {"training_metrics": {"kl": "min"}, "stop_when": "worst(kl) < 1"},
            "'worst' runs over datasets, and 'kl' has none",
        ),
        ({"training_metrics": {"kl": "min"}, "stop_when": "kll < 1"}, "did you mean 'kl'?"),
    ],
)
def test_mistakes_are_found_before_the_first_step(fit, arguments, problem):
    module = Slow()
    with pytest.raises((RuleError, ConfigError)) as error:
        fit(module, validation=True, **arguments)
    assert problem in str(error.value)
    assert module.state is None or module.state.global_step == 0


@pytest.mark.parametrize(
    ("log_every", "steps"),
    [
        ("30 steps", [30, 60, 90]),
        ("epoch", [100]),
        ("0.5 epochs", [50, 100]),
        ("50 samples", [25, 50, 75, 100]),
        ("40 steps or 1 hour", [40, 80]),
        ("25%", [25, 50, 75, 100]),
        ("20 steps after 50 steps", [60, 80, 100]),
    ],
)
def test_log_every_takes_a_text(fit, monkeypatch, log_every, steps):
    from accmt.tracking.tracker import NoTracker

    sent = []
    monkeypatch.setattr(NoTracker, "log", lambda self, values, step: sent.append((step, values)))

    class Logs(Slow):
        def training_step(self, batch):
            self.log({"mine": float(self.state.global_step)}, self.state.global_step)
            return super().training_step(batch)

    fit(Logs(), log_every=log_every)
    assert [step for step, values in sent if "train_loss" in values] == steps
    mine = [(step, values["mine"]) for step, values in sent if "mine" in values]
    assert mine
    assert all(step == value for step, value in mine)
    if log_every not in ("30 steps", "epoch"):
        assert [step for step, _ in mine] == [step - 1 for step in steps]


def test_log_every_by_the_clock(fit, monkeypatch):
    from accmt.tracking.tracker import NoTracker

    sent, module = [], Slow(0)
    monkeypatch.setattr(NoTracker, "log", lambda self, values, step: sent.append(step))
    monkeypatch.setattr(Stopwatch, "elapsed", lambda self: 0.05 * module.state.global_step if module.state else 0.0)
    fit(module, log_every="0.2 seconds")
    assert sent == list(range(4, 101, 4))


def test_a_module_that_steps_by_itself_logs_too(fit):
    class Extended(ExtendedAcceleratorModule, Slow):
        def training_step(self, batch):
            loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
            self.log({"kl": loss.detach() * 0 + 2}, 0)
            self.backward(loss)
            self.step()
            return loss

    training = fit(Extended(), training_metrics={"kl": "min"}, validation=True)
    assert read(training.model_path / "history.jsonl")[0]["training"] == {"kl": 2.0}
    assert json.loads((training.model_path / "training.json").read_text())["training_metrics"] == {"kl": False}


def test_one_step_is_told_in_the_singular(trainer, regression, data, capsys):
    trainer(max_steps=1).fit(regression(), data(8))
    shown = capsys.readouterr().out
    assert "1 step, 1 epoch" in shown
    assert "after 1 step\n" in shown.replace(" \n", "\n")
    assert " 1 steps" not in shown
