"""Evaluating on its own, and loading what a training saved."""

import shutil

import pytest
import torch
from torch import nn

from accmt import Callback, ConfigError, FunctionMetric, Metric, load_saving
from accmt.checkpoint.stateful import Mismatch


class Told(Callback):
    def __init__(self):
        super().__init__()
        self.called = []

    def on_evaluation_start(self):
        self.called.append("start")

    def on_evaluation_end(self):
        self.called.append("end")


@pytest.mark.proves("Trainer.evaluate", "Trainer.evaluate(module)", "Trainer.evaluate(datasets)")
@pytest.mark.parametrize("safe", [False, True])
def test_a_saving_evaluates_to_what_was_recorded(trainer, regression, data, error_metric, safe):
    training = trainer(metrics=error_metric(), safe_serialization=safe)
    training.register_model_saving("best_error@a")
    training.fit(regression(), data(20), {"a": data(7, 1), "b": data(5, 2)})
    saving = training.best("best_error@a")
    module = regression()
    loaded = load_saving(saving.folder, module)
    assert loaded == saving
    values = training.evaluate(module, {"a": data(7, 1)})
    assert values["a"]["error"] == pytest.approx(saving.values["error@a"])
    assert set(values) == {"a"}
    assert module.model.training


def test_nothing_is_written_or_decided(trainer, regression, data, error_metric):
    told = Told()
    training = trainer(metrics=error_metric(), callback=told)
    values = training.evaluate(regression(), [data(7), data(5)])
    assert list(values) == ["0", "1"]
    assert set(values["0"]) == {"valid_loss", "error"}
    assert not training.model_path.exists()
    assert training.decisions == []
    assert told.called == ["start", "end"]


def test_a_single_dataset_has_the_key_0(trainer, regression, data):
    assert list(trainer().evaluate(regression(), data(7))) == ["0"]


def test_what_cannot_be_evaluated(trainer, regression, data):
    module = regression()
    del module.model
    for given, text in [
        ((regression, data(4)), "module: is the class Regression: give an instance, Regression()"),
        ((module, data(4)), "Regression: has no model: set self.model to a torch.nn.Module in its constructor"),
        ((regression(), {}), "datasets: is empty: there is nothing to evaluate"),
        ((regression(), {"a": data(0)}), "datasets['a']: is empty"),
    ]:
        with pytest.raises(ConfigError) as caught:
            trainer().evaluate(*given)
        assert str(caught.value).startswith(f"1 mistake in evaluate(...):\n  {text}")


def test_the_best_of_several_is_loaded(trainer, regression, data, error_metric):
    training = trainer(epochs=3, metrics=error_metric(), lr=0.2)
    training.register_model_saving("best_error keep 2")
    training.fit(regression(), data(20), data(7, 1))
    module = regression()
    loaded = load_saving(training.model_path / "best_error", module)
    assert loaded == training.best("best_error")
    assert training.evaluate(module, data(7, 1))["0"]["error"] == pytest.approx(loaded.values["error"])


@pytest.mark.proves("Trainer(max_shard_size)")
@pytest.mark.parametrize("safe", [False, True])
def test_a_model_in_several_files(trainer, regression, data, safe):
    training = trainer(epochs=1, max_shard_size="0.1KB", safe_serialization=safe)
    module = regression()
    training.fit(module, data(20), data(7, 1))
    folder = training.best("best_valid_loss").folder
    kind = "model-*.safetensors" if safe else "pytorch_model-*.bin"
    files = sorted(folder.glob(kind))
    assert len(files) > 1
    assert all(file.stat().st_size < 3000 for file in files)
    other = regression()
    load_saving(folder, other)
    for mine, theirs in zip(other.model.parameters(), module.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", ["10XB", "ten", 0, "0MB", None])
def test_sizes_that_are_none(trainer, size):
    with pytest.raises(ConfigError) as caught:
        trainer(max_shard_size=size)
    said = '1 mistake in Trainer(...):\n  max_shard_size: must be a size such as "10GB" or "500MB", not '
    assert str(caught.value).startswith(said)


def test_savings_that_cannot_be_loaded(trainer, regression, data, tmp_path):
    training = trainer(epochs=1)
    training.fit(regression(), data(8), data(4))
    folder = training.best("best_valid_loss").folder
    with pytest.raises(FileNotFoundError, match="there is no saved model in"):
        load_saving(tmp_path / "nothing", regression())
    other = nn.Linear(4, 2)
    before = other.weight.clone()
    with pytest.raises(Mismatch) as caught:
        load_saving(folder, other)
    assert "nothing was loaded:\n  0.bias is not in the model\n" in str(caught.value)
    assert torch.equal(other.weight, before)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    content = bytearray((damaged / "pytorch_model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match="damaged: its content does not match its hash"):
        load_saving(damaged, regression())


class Several(Metric):
    def compute(self, outputs, targets):
        difference = (outputs - targets).abs()
        return {"mean": difference.mean(), "worst": difference.max(), "count": len(outputs)}


def test_rules_can_ask_for_every_value_whose_direction_is_given(trainer, regression, data):
    metric = Several("error", greater_is_better={"mean": False, "worst": False}, main_metric="mean")
    training = trainer(metrics=metric)
    training.register_model_saving("best_mean/worst")
    training.fit(regression(), data(20), data(7, 1))
    assert set(training.best("best_mean/worst").values) == {"mean", "worst"}
    assert training.state.additional_metrics["0"]["count"] == 7.0


def test_a_declared_value_that_is_not_computed(trainer, regression, data):
    metric = Several("error", greater_is_better={"mean": False, "median": False}, main_metric="mean")
    with pytest.raises(
        KeyError, match="the metric 'error' on 'valid' did not compute 'median'; its direction is declared"
    ):
        trainer(metrics=metric).fit(regression(), data(20), data(7, 1))


def test_directions_that_say_nothing_of_the_main_value():
    with pytest.raises(ValueError, match="has no entry for its main value 'error', only for 'mean': add it, or name"):
        Several("error", greater_is_better={"mean": False})


def test_two_metrics_that_compute_one_name(trainer, regression, data):
    class Doubled(regression):
        def validation_step(self, key, batch):
            outputs = super().validation_step(key, batch)
            return {**outputs, "first": outputs["error"], "second": outputs["error"]}

    metrics = [Several("first", main_metric="mean", greater_is_better=False)]
    metrics.append(FunctionMetric("second", lambda p, t: {"second": 1.0, "worst": 2.0}, True))
    with pytest.raises(ValueError, match="two metrics on 'valid' computed 'worst'; 'second' is the second of them"):
        trainer(metrics=metrics).fit(Doubled(), data(20), data(7, 1))
