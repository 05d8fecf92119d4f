"""What a training does to a model besides its weights: modes, wrappers, gradients, and that it is given back."""

import json
import shutil

import pytest
import torch
from torch import nn

from accmt import AcceleratorModule, ExtendedAcceleratorModule, FunctionMetric
from accmt.checkpoint.archive import archive_training
from accmt.checkpoint.stateful import Mismatch

ACCURACY = FunctionMetric("accuracy", lambda values: values.mean(), greater_is_better=True)


class Backbone(AcceleratorModule):
    """A model whose first part is frozen in evaluation mode; it tells the modes at each step."""

    def __init__(self):
        self.model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Dropout(0.5), nn.Linear(4, 1))
        self.model[0].eval()
        self.seen = []

    def training_step(self, batch):
        self.seen.append((self.model[0][1].training, self.model[1].training))
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        self.seen.append((self.model[0][1].training, self.model[1].training))
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


def test_parts_in_evaluation_mode_stay_there(trainer, data):
    module = Backbone()
    trainer(epochs=2).fit(module, data(4), data(4))
    assert module.seen == [(False, True), (False, False), (False, True), (False, False)]


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(trainer, regression, data):
    module = regression(dropout=0.5)
    module.model.eval()
    seen = []
    module.model[2].register_forward_hook(lambda part, inputs, output: seen.append(part.training))
    trainer(epochs=1).fit(module, data(8))
    assert seen == [True, True]


def test_a_precision_ends_with_its_training(trainer, data):
    module = Backbone()
    seen = []
    module.model[2].register_forward_hook(lambda part, inputs, output: seen.append(output.dtype))
    trainer("first", epochs=1, mixed_precision="bf16").fit(module, data(4))
    assert "forward" not in vars(module.model)
    trainer("second", epochs=1, mixed_precision="no").fit(module, data(4))
    trainer("third", mixed_precision="bf16", sanity_check=False).evaluate(module, data(4))
    trainer("fourth", mixed_precision="no", sanity_check=False).evaluate(module, data(4))
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]


class Accumulating(ExtendedAcceleratorModule):
    """Updates every second batch, whatever the epochs."""

    def __init__(self):
        self.model = nn.Linear(4, 1)

    def training_step(self, batch):
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        self.backward(loss)
        if self.state.global_step % 2 == 1:
            self.step()
        if getattr(self, "cut", None) == self.state.global_step:
            raise KeyboardInterrupt
        return loss


def test_gradients_that_a_module_accumulates_survive_a_resume(trainer, data):
    whole, cut = Accumulating(), Accumulating()
    cut.model.load_state_dict(whole.model.state_dict())
    trainer("whole", checkpoint_every="3 steps").fit(whole, data(20))
    cut.cut = 4
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", checkpoint_every="3 steps").fit(cut, data(20))
    resumed = Accumulating()
    trainer("cut", checkpoint_every="3 steps").fit(resumed, data(20))
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_the_loss_does_not_depend_on_its_precision(trainer, data):
    class Half(Backbone):
        def validation_step(self, key, batch):
            return torch.tensor(10.0, dtype=torch.float16)

    training = trainer(batch_size=(4, 8192), epochs=1)
    training.fit(Half(), data(4), data(8192))
    assert training.state.additional_metrics["0"]["valid_loss"] == 10.0


def test_a_part_of_the_datasets_can_be_evaluated(trainer, data, regression):
    metrics = {
        "dev": FunctionMetric("a", lambda *args: 1.0, True),
        "test": FunctionMetric("error", lambda *args: 2.0, True),
    }
    values = trainer(metrics=metrics).evaluate(regression(), {"test": data(4)})
    assert values["test"]["error"] == 2.0


def test_a_tracker_does_not_stay_open_when_a_checkpoint_does_not_fit(trainer, data, regression, monkeypatch):
    closed = []
    trainer().fit(regression(), data(8))
    training = trainer()
    monkeypatch.setattr("accmt.tracking.tracker.NoTracker.close", lambda self, status: closed.append(status))
    with pytest.raises(Mismatch):
        training.fit(Backbone(), data(8))
    assert closed == ["FAILED"]


def test_older_checkpoints_that_cannot_be_deleted_are_a_warning(trainer, data, regression, monkeypatch, capsys):
    def refuse(self, keep):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("accmt.checkpoint.checkpoints.Checkpoints.prune", refuse)
    training = trainer(epochs=3)
    training.fit(regression(), data(8))
    assert training.state.num_checkpoints_made == 3
    assert "warning: older checkpoints could not be deleted: PermissionError" in capsys.readouterr().out


def test_a_damaged_description_does_not_keep_a_training_from_continuing(trainer, data, regression, capsys):
    training = trainer()
    training.fit(regression(), data(8))
    (training.model_path / "training.json").write_text("{")
    trainer(epochs=3).fit(regression(), data(8))
    assert "warning: earlier changes of the settings are not known: " in capsys.readouterr().out
    assert json.loads((training.model_path / "training.json").read_text())["schema"] == 1


@pytest.mark.parametrize("moved", [1, 2, 3])
def test_a_start_anew_that_was_cut_short_loses_nothing(trainer, data, regression, tmp_path, moved):
    """Checkpoints, journals and models are moved one after the other; what is left is moved by the next start."""
    trainer(epochs=1).fit(regression(), data(8), data(4))
    folder = tmp_path / "model"
    (folder / "earlier-1").mkdir()
    order = [
        "checkpoints",
        "history.jsonl",
        "decisions.jsonl",
        "training.json",
        "run.json",
        "log.jsonl",
        "best_valid_loss",
    ]
    for name in order[:moved]:
        shutil.move(folder / name, folder / "earlier-1" / name)
    trainer(epochs=1).fit(regression(), data(8), data(4))
    kept = {path.name for number in (1, 2) for path in (folder / f"earlier-{number}").iterdir()}
    assert kept == set(order)


def test_journals_alone_are_moved_after_a_cut_only(trainer, data, regression, tmp_path):
    arguments = {"disable_model_saving": True, "epochs": 1}
    trainer(**arguments).fit(regression(), data(8), data(4))
    folder = tmp_path / "model"
    (folder / "earlier-1").mkdir()
    (folder / "checkpoints").rename(folder / "earlier-1" / "checkpoints")
    assert archive_training(folder, []) == folder / "earlier-2"
    assert archive_training(folder, []) is None
    assert (folder / "earlier-2" / "history.jsonl").is_file()


def test_models_that_made_place_for_later_ones_are_decided_again(trainer, regression, data):
    """With `keep 2`, a crash after the checkpoint may have deleted models that the checkpoint still knows of."""
    scores = [0.1, 0.2, 0.3, 0.4, 0.35, 0.5]

    class Scored(regression):
        cut = None

        def training_step(self, batch):
            if self.state.global_step == self.cut:
                raise KeyboardInterrupt
            return super().training_step(batch)

        def validation_step(self, key, batch):
            score = scores[self.state.evaluations_done]
            return {"loss": torch.tensor(1.0), "accuracy": torch.full((len(batch[0]),), score)}

    def train(path, cut=None):
        training = trainer(path, epochs=6, checkpoint_every="2 epochs", metrics=ACCURACY)
        training.register_model_saving("best_accuracy keep 2")
        module = Scored()
        module.cut = cut
        training.fit(module, data(4), data(4))
        return [decision.verdicts[0].to_json() for decision in training.decisions]

    expected = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("cut", cut=3)
    assert train("cut") == expected


def test_a_model_saved_after_the_checkpoint_is_no_earlier_rule_s(trainer, regression, data, capsys):
    class Cut(regression):
        def training_step(self, batch):
            if self.state.global_step == 5:
                raise KeyboardInterrupt
            return super().training_step(batch)

    arguments = {"checkpoint_every": "3 steps", "evaluate_every_n_steps": 4, "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        trainer(**arguments).fit(Cut(), data(40), data(4))
    training = trainer(**arguments)
    training.fit(regression(), data(40), data(4))
    assert "an earlier 'best_valid_loss'" not in capsys.readouterr().out
    assert not (training.model_path / "earlier-1").exists()


def test_a_training_loss_that_is_no_number_is_said_without_logging(trainer, regression, data, capsys):
    class Nan(regression):
        def training_step(self, batch):
            return super().training_step(batch) * torch.nan

    trainer(epochs=2, log_every=None).fit(Nan(), data(8), data(4))
    assert capsys.readouterr().out.count("warning: the training loss is nan") == 1
