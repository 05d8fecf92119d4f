"""What arguments of the trainer do that no other test shows: checkpoints, patience, logging, gradients, metrics."""

import json

import pytest
import torch
from torch import nn

from accmt import Callback, ConfigError, FunctionMetric, RuleError, Trainer


class Steps(Callback):
    """The steps that this training made, and when it checkpointed."""

    def __init__(self):
        super().__init__()
        self.made, self.checkpoints = [], []

    def on_after_optimizer_step(self, optimizer):
        self.made.append(self.state.global_step + 1)

    def on_save_checkpoint(self):
        self.checkpoints.append(self.state.global_step)


def checkpoints(training):
    folder = training.model_path / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.proves("Trainer(enable_checkpointing)")
@pytest.mark.parametrize("arguments", [{"enable_checkpointing": False}, {"checkpoint_every": None}])
def test_without_checkpoints_nothing_is_written_and_nothing_continued(trainer, regression, data, arguments):
    for _ in range(2):
        steps = Steps()
        training = trainer(callback=steps, **arguments)
        training.fit(regression(), data(8), data(4))
        assert checkpoints(training) == []
        assert (steps.made, steps.checkpoints) == ([1, 2, 3, 4], [])
        assert training.state.num_checkpoints_made == 0


@pytest.mark.proves("Trainer(enable_checkpointing)")
def test_checkpoints_that_are_there_are_left_alone_when_they_are_switched_off(trainer, regression, data):
    trainer().fit(regression(), data(8))
    steps = Steps()
    trainer(callback=steps, enable_checkpointing=False).fit(regression(), data(8))
    assert steps.made == [1, 2, 3, 4]


@pytest.mark.proves("Trainer(resume)")
@pytest.mark.parametrize(
    ("resume", "made"),
    [
        (None, [9, 10]),
        (True, [9, 10]),
        (-1, [9, 10]),
        (False, list(range(1, 11))),
        (1, list(range(3, 11))),
        (3, list(range(7, 11))),
    ],
)
def test_each_form_of_resume(trainer, regression, data, resume, made):
    arguments = {"multiple_checkpoints": True, "checkpoint_every": "2 steps"}
    trainer(max_steps=8, **arguments).fit(regression(), data(20))
    steps = Steps()
    trainer(max_steps=10, resume=resume, callback=steps, **arguments).fit(regression(), data(20))
    assert steps.made == made


@pytest.mark.proves("Trainer(resume)")
def test_resume_by_itself_when_there_is_nothing(trainer, regression, data):
    steps = Steps()
    trainer(resume=None, callback=steps).fit(regression(), data(8))
    assert steps.made == [1, 2, 3, 4]


class Scored:
    """A module whose validation loss and `score` at each evaluation are given."""

    def __new__(cls, regression, losses, scores):
        class Module(regression):
            def validation_step(self, key, batch):
                number = self.state.evaluations_done
                score = torch.full((len(batch[0]),), scores[number])
                return {"loss": torch.tensor(losses[number]), "score": (score,)}

        return Module()


def score(greater_is_better=True):
    return FunctionMetric("score", lambda values: values.mean(), greater_is_better)


@pytest.mark.proves("Trainer(patience)", "states.TrainingState(patience_left)")
@pytest.mark.parametrize(
    ("patience", "evaluations", "left"),
    [
        (None, 6, {"best_valid_loss": -1, "best_score": -1}),
        (2, 6, {"best_valid_loss": 0, "best_score": 2}),
        ({"best_valid_loss": 2}, 3, {"best_valid_loss": 0, "best_score": -1}),
        ({"best_valid_loss": 4}, 5, {"best_valid_loss": 0, "best_score": -1}),
        ({"best_score": 2}, 6, {"best_valid_loss": -1, "best_score": 2}),
    ],
)
def test_patience_for_all_rules_or_by_rule(trainer, regression, data, patience, evaluations, left):
    """The loss stands still and the score grows: the training ends when every rule with a patience has lost it."""
    training = trainer(epochs=6, patience=patience, metrics=score())
    training.register_model_saving("best_valid_loss")
    training.register_model_saving("best_score")
    module = Scored(regression, [1.0] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    training.fit(module, data(8), data(4))
    assert training.state.evaluations_done == evaluations
    assert training.state.patience_left == left


@pytest.mark.proves("Trainer.register_model_saving(saving_below)", "Trainer.register_model_saving(saving_above)")
@pytest.mark.parametrize(
    ("limits", "saved"),
    [
        ({}, [1, 2, 4, 5]),
        ({"saving_above": 0.35}, [2, 4, 5]),
        ({"saving_below": 0.55}, [1, 2]),
        ({"saving_above": 0.35, "saving_below": 0.65}, [2, 4]),
    ],
)
def test_a_registered_saving_keeps_to_its_limits(trainer, regression, data, limits, saved):
    training = trainer(epochs=5, metrics=score())
    training.register_model_saving("best_score", **limits)
    training.fit(Scored(regression, [1.0] * 5, [0.3, 0.5, 0.4, 0.6, 0.7]), data(8), data(4))
    assert [d.progress.evaluation for d in training.decisions if d.saved] == saved
    assert [path.name for path in training.model_path.glob("best_*")] == ["best_score"]


@pytest.mark.proves("Trainer.register_model_saving", "Trainer.register_model_saving(model_saving)")
def test_the_rules_that_are_registered_take_the_place_of_the_default(trainer, regression, data):
    """`best_valid_loss` with validation data, `best_train_loss` without."""
    for name, validation, folder in (("a", data(4), "best_valid_loss"), ("b", None, "best_train_loss")):
        training = trainer(name, epochs=1)
        training.fit(regression(), data(8), validation)
        assert [path.name for path in training.model_path.glob("best_*")] == [folder]
    training = trainer("c", epochs=1, metrics=score())
    training.register_model_saving("score@dev/valid_loss@test")
    training.fit(Scored(regression, [1.0], [0.5]), data(8), {"dev": data(4), "test": data(4)})
    assert [path.name for path in training.model_path.glob("best_*")] == ["best_score@dev__valid_loss@test"]


class Losses:
    """A module that keeps the loss of every batch."""

    def __new__(cls, regression):
        class Module(regression):
            def __init__(self):
                super().__init__()
                self.losses = []

            def training_step(self, batch):
                loss = super().training_step(batch)
                self.losses.append(loss.item())
                return loss

        return Module()


def mean(values, last=4):
    """The mean over samples, of batches of 4, the last of them perhaps smaller."""
    sizes = [4] * (len(values) - 1) + [last]
    return pytest.approx(sum(map(float.__mul__, values, map(float, sizes))) / sum(sizes), rel=1e-6)


@pytest.mark.proves("Trainer(log_every)")
@pytest.mark.parametrize("arguments", [{}, {"log_every": -1}])
def test_the_training_loss_is_logged_at_the_end_of_each_epoch(trainer, regression, data, runs, arguments):
    """With accumulation that is after as many optimizer steps as an epoch has; it is the mean over samples."""
    module = Losses(regression)
    trainer(log_with="told", grad_accumulation_steps=2, **arguments).fit(module, data(22))
    assert len(module.losses) == 12
    assert runs[0].of("train_loss") == {3: mean(module.losses[:6], 2), 6: mean(module.losses[6:], 2)}


@pytest.mark.proves("Trainer(log_every)")
def test_the_training_loss_is_logged_every_so_many_optimizer_steps(trainer, regression, data, runs):
    """Each step has `grad_accumulation_steps` batches, and the mean is of those since the last logging."""
    module = Losses(regression)
    trainer(log_with="told", grad_accumulation_steps=2, log_every=2).fit(module, data(20))
    # Five batches an epoch: windows of 2, 2, 1.
    assert runs[0].of("train_loss") == {
        2: mean(module.losses[:4]),
        4: mean(module.losses[4:7]),
        6: mean(module.losses[7:]),
    }


@pytest.mark.proves("Trainer(log_every)")
def test_without_logging_no_training_loss_is_sent(trainer, regression, data, runs):
    trainer(log_with="told", log_every=None).fit(regression(), data(8), data(4))
    assert {name for _, name, _ in runs[0].sent} == {"val_loss"}


class Norms(Callback):
    def __init__(self):
        super().__init__()
        self.norms = []

    def on_before_optimizer_step(self, optimizer):
        gradients = [parameter.grad.flatten() for parameter in self.module.model.parameters()]
        self.norms.append(torch.cat(gradients).norm().item())


@pytest.mark.proves("Trainer(clip_grad)")
@pytest.mark.parametrize(("arguments", "norm"), [({}, 1.0), ({"clip_grad": 0.25}, 0.25), ({"clip_grad": None}, None)])
def test_gradients_are_clipped_to_one_by_default(trainer, regression, data, arguments, norm):
    class Steep(regression):
        def training_step(self, batch):
            return 1000 * super().training_step(batch)

    norms = Norms()
    trainer(epochs=1, lr=1e-6, callback=norms, **arguments).fit(Steep(), data(8))
    if norm is None:
        assert min(norms.norms) > 100
    else:
        assert norms.norms == pytest.approx([norm, norm], rel=1e-4)


class Both:
    """A module that gives arguments for the metrics `error` and `bias`."""

    def __new__(cls, regression):
        class Module(regression):
            def validation_step(self, key, batch):
                outputs = super().validation_step(key, batch)
                return {**outputs, "bias": outputs["error"]}

        return Module()


def bias():
    return FunctionMetric("bias", lambda p, t: (p - t).mean(), greater_is_better=False)


@pytest.mark.proves("Trainer(metrics)")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda error, bias: None, {"dev": set(), "test": set()}),
        (lambda error, bias: error, {"dev": {"error"}, "test": {"error"}}),
        (lambda error, bias: [error, bias], {"dev": {"error", "bias"}, "test": {"error", "bias"}}),
        (lambda error, bias: {"dev": error}, {"dev": {"error"}, "test": set()}),
        (lambda error, bias: {"dev": error, "test": [error, bias]}, {"dev": {"error"}, "test": {"error", "bias"}}),
    ],
)
def test_metrics_for_all_datasets_or_by_dataset(trainer, regression, data, error_metric, make, expected):
    training = trainer(epochs=1, metrics=make(error_metric(), bias()))
    training.fit(Both(regression), data(8), {"dev": data(6, 1), "test": data(5, 2)})
    values = training.state.additional_metrics
    assert {key: set(named) - {"valid_loss"} for key, named in values.items()} == expected


@pytest.mark.proves("Trainer.fit(val_dataset)", "AcceleratorModule.validation_step(key)")
@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda data: None, []),
        (lambda data: data(4), ["0"]),
        (lambda data: [data(4), data(6)], ["0", "1"]),
        (lambda data: {"dev": data(4), 7: data(6)}, ["dev", "7"]),
    ],
)
def test_validation_data_in_each_form(trainer, regression, data, error_metric, runs, make, keys):
    """A single dataset has plain names; with several each name is followed by the key of its dataset."""
    seen = []

    class Keyed(regression):
        def validation_step(self, key, batch):
            seen.append(key)
            return super().validation_step(key, batch)

    training = trainer(epochs=1, log_with="told", metrics=error_metric())
    training.fit(Keyed(), data(8), make(data))
    assert list(dict.fromkeys(seen)) == keys
    assert list(training.state.additional_metrics) == keys
    suffixes = [""] if len(keys) == 1 else [f"_{key}" for key in keys]
    expected = {name + suffix for suffix in suffixes for name in ("val_loss", "error")}
    assert {name for _, name, _ in runs[0].sent} - {"train_loss", "epoch"} == expected


@pytest.mark.proves("Trainer(model_path)")
def test_everything_is_written_below_model_path(tmp_path, regression, data, monkeypatch):
    """As a text or a path, and also where the current folder is another one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (str(tmp_path / "a" / "model"), tmp_path / "b" / "model"):
        training = Trainer({"epochs": 1, "batch_size": 4}, path, dataloader_num_workers=0)
        training.fit(regression(), data(8), data(4))
        names = {entry.name for entry in (training.model_path).iterdir()}
        assert {"best_valid_loss", "checkpoints", "history.jsonl", "decisions.jsonl"} <= names
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()].count("elsewhere") == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.proves("Trainer(hps_config)")
@pytest.mark.parametrize("form", ["path", "text", "dictionary"])
def test_the_hyperparameters_as_a_file_or_a_dictionary(tmp_path, regression, data, form):
    values = {"epochs": 3, "batch_size": 5, "optimizer": {"type": "Adam", "lr": 0.25}}
    (tmp_path / "hps.yaml").write_text(json.dumps(values))
    given = {"path": tmp_path / "hps.yaml", "text": str(tmp_path / "hps.yaml"), "dictionary": values}[form]

    class Seen(Callback):
        def on_fit_start(self):
            self.sizes, self.rates = [], []

        def on_before_training_step(self, batch):
            self.sizes.append(len(batch[0]))

        def on_before_optimizer_step(self, optimizer):
            self.rates.append(optimizer.param_groups[0]["lr"])

    seen = Seen()
    Trainer(given, tmp_path / "model", callback=seen, dataloader_num_workers=0).fit(regression(), data(10))
    assert seen.sizes == [5] * 6
    assert seen.rates == [0.25] * 6


@pytest.mark.proves("hyperparameters.HyperParameters(batch_size)")
def test_two_batch_sizes_one_for_training_and_one_for_evaluations(trainer, regression, data):
    sizes = {"training": set(), "validation": set()}

    class Sizes(regression):
        def training_step(self, batch):
            sizes["training"].add(len(batch[0]))
            return super().training_step(batch)

        def validation_step(self, key, batch):
            sizes["validation"].add(len(batch[0]))
            return super().validation_step(key, batch)

    trainer("two", batch_size=(2, 6)).fit(Sizes(), data(8), data(12))
    assert sizes == {"training": {2}, "validation": {6}}
    trainer("one", batch_size=4).fit(Sizes(), data(8), data(12))
    assert sizes == {"training": {2, 4}, "validation": {6, 4}}


@pytest.mark.proves("hyperparameters.HyperParameters(epochs)", "hyperparameters.HyperParameters(max_steps)")
def test_max_steps_go_before_epochs(trainer, regression, data):
    for epochs, max_steps, steps in ((2, None, 4), (2, 3, 3), (1, 7, 7)):
        training = trainer(f"{epochs}-{max_steps}", epochs=epochs, max_steps=max_steps)
        training.fit(regression(), data(8))
        assert training.state.global_step == steps


def test_a_limit_that_contradicts_itself_is_refused(trainer):
    with pytest.raises(RuleError) as caught:
        trainer().register_model_saving("best_score", saving_below=0.5, saving_above=0.5)
    assert "saving_above must be less than saving_below" in str(caught.value)


def test_a_trainer_of_nothing_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Trainer(str(tmp_path / "none.yaml"), "")
    assert [problem.path for problem in caught.value.problems] == [str(tmp_path / "none.yaml"), "model_path"]


@pytest.mark.proves("Trainer")
def test_two_trainings_in_one_script_do_not_know_of_each_other(trainer, regression, data, capsys):
    """One after another, also after one that failed: the second is what it is alone."""

    class Broken(regression):
        def validation_step(self, key, batch):
            raise ValueError("broken")

    start = regression().model.state_dict()
    ends = []
    for path, before in (("alone", []), ("after", [regression, Broken])):
        for number, kind in enumerate(before):
            try:
                trainer(f"{path}-{number}").fit(kind(), data(8), data(4))
            except ValueError as error:
                assert str(error) == "broken"  # noqa: PT017  (only one of the two raises)
        torch.manual_seed(3)
        module = regression(dropout=0.5)
        module.model.load_state_dict(start)
        training = trainer(path)
        training.fit(module, data(20), data(4))
        ends.append((module.model.state_dict(), training.state))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert isinstance(module.model, nn.Sequential)
