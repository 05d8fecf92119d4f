"""The history that `fit` returns, and that of a folder."""

import math
import subprocess
import sys

import pytest

from accmt import Callback, TrainingHistory
from accmt.tracking import history as module

COLUMNS = ["step", "epoch", "dataset", "metric", "value"]


class Cut(Callback):
    def on_after_optimizer_step(self, optimizer):
        if self.state.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.proves("Trainer.fit", "TrainingHistory.to_pandas")
def test_long_form(trainer, regression, data, error_metric):
    """One row for each value; those of the training data have no dataset."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    training = trainer(metrics=error_metric(), eval_when_start=True)
    history = training.fit(regression(), data(12), {"a": data(5, 1), "b": data(5, 2)})
    frame = history.to_pandas()
    assert list(frame.columns) == COLUMNS
    assert len(history) == 3
    assert frame["step"].tolist() == [0] * 4 + [3] * 5 + [6] * 5
    assert frame["epoch"].tolist() == [0] * 4 + [1] * 5 + [2] * 5
    last = frame[frame.step == 6]
    assert last["metric"].tolist() == ["train_loss", "valid_loss", "error", "valid_loss", "error"]
    assert pandas.isna(last["dataset"].iloc[0])
    assert last["dataset"].tolist()[1:] == ["a", "a", "b", "b"]
    found = last[(last.dataset == "b") & (last.metric == "error")]["value"].item()
    assert found == training.state.additional_metrics["b"]["error"]
    assert frame["value"].dtype == float
    assert [tuple(value) for value in history if value.step == 6][4] == (6, 2, "b", "error", found)
    assert TrainingHistory(()).to_pandas().columns.tolist() == COLUMNS


def test_the_only_dataset_is_called_valid(trainer, regression, data):
    history = trainer().fit(regression(), data(12), data(5))
    assert {value.dataset for value in history} == {None, "valid"}
    assert "valid_loss@valid" in history._repr_html_()
    assert history.plot().axes[1].get_legend().texts[0].get_text() == "valid"
    assert list(history.observations[0].values) == ["0"], "its key in rules and on the disk"


@pytest.mark.proves("TrainingHistory", "TrainingHistory(observations)", "TrainingHistory(stop)")
def test_its_text(trainer, regression, data):
    training = trainer(epochs=5, stop_when="epoch >= 3")
    history = training.fit(regression(), data(8), data(4))
    assert repr(history) == f"TrainingHistory(3 evaluations, 3 epochs, stopped: {history.stop.reason})"
    assert history.stop == training.decisions[-1].stop or history.stop == training.decisions[-2].stop
    assert "epoch" in history.stop.reason
    assert repr(trainer("other", epochs=1).fit(regression(), data(8))) == "TrainingHistory(1 evaluation, 1 epoch)"
    assert repr(TrainingHistory(())) == "TrainingHistory(0 evaluations, 0 epochs)"


@pytest.mark.proves("TrainingHistory.load", "TrainingHistory.load(model_path)")
def test_it_covers_the_runs_before_a_resume(trainer, regression, data, tmp_path, monkeypatch):
    """And what the folder holds is the same, also where something was done twice, or was moved away."""
    with pytest.raises(KeyboardInterrupt):
        trainer(epochs=3, callback=Cut(), checkpoint_every="2 steps").fit(regression(), data(12), data(4))
    assert repr(TrainingHistory.load(tmp_path / "model")) == "TrainingHistory(1 evaluation, 1 epoch)"
    history = trainer(epochs=3).fit(regression(), data(12), data(4))
    assert [value.step for value in history if value.metric == "valid_loss"] == [3, 6, 9]
    monkeypatch.chdir(tmp_path)
    loaded = TrainingHistory.load("model")
    assert list(loaded) == list(history)
    assert loaded.observations == history.observations
    done = trainer(epochs=3).fit(regression(), data(12), data(4))
    assert list(done) == list(history)
    fresh = trainer(epochs=1, resume=False).fit(regression(), data(12), data(4))
    assert [value.step for value in fresh if value.metric == "valid_loss"] == [3]


def test_values_of_the_training_without_validation_data(trainer, regression, data):
    class Logs(regression):
        def training_step(self, batch):
            self.log({"size": float(len(batch[0]))}, self.state.global_step)
            return super().training_step(batch)

    history = trainer(training_metrics={"size": "max"}).fit(Logs(), data(8))
    assert [(value.dataset, value.metric) for value in history] == [(None, "train_loss"), (None, "size")] * 2
    assert [value.value for value in history if value.metric == "size"] == [4.0, 4.0]


def test_values_that_are_not_numbers(trainer, regression, data):
    class Bad(regression):
        def training_step(self, batch):
            return super().training_step(batch) * math.nan

    history = trainer(epochs=1).fit(Bad(), data(8))
    assert math.isnan(next(iter(history)).value)
    assert math.isnan(next(iter(TrainingHistory.load(history_folder(history, trainer)))).value)


def history_folder(history, trainer):
    return trainer().model_path


def test_folders_without_a_history(trainer, regression, data, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        TrainingHistory.load(tmp_path / "nosuch")
    text = f"{tmp_path / 'nosuch'} is not the folder of a training: it has no history.jsonl"
    assert str(caught.value) == text
    training = trainer()
    training.fit(regression(), data(8))
    path = training.model_path / "history.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:20]}\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 2 is damaged: "):
        TrainingHistory.load(training.model_path)
    path.write_text('{"step": 3}\n')
    with pytest.raises(ValueError, match=r"history\.jsonl, line 1 is not an observation: epoch is missing"):
        TrainingHistory.load(training.model_path)


def test_a_damaged_line_does_not_end_a_training(trainer, regression, data):
    """It is left out, as it is of the decisions."""
    trainer(epochs=2).fit(regression(), data(8))
    path = trainer().model_path / "history.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first[:20]}\n{second}\n")
    history = trainer(epochs=3).fit(regression(), data(8))
    assert [value.epoch for value in history] == [2, 3]


def test_without_pandas(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        TrainingHistory(()).to_pandas()
    assert str(caught.value) == "to_pandas needs pandas, which is not installed: pip install pandas"


def test_reading_a_history_imports_neither_torch_nor_pandas(trainer, regression, data):
    training = trainer(epochs=1)
    training.fit(regression(), data(8))
    program = (
        "import sys; from accmt import TrainingHistory; "
        f"print(TrainingHistory.load({str(training.model_path)!r}), {{'torch', 'pandas'}} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "TrainingHistory(1 evaluation, 1 epoch) set()\n"
