"""How a trial ends, what it leaves behind, and what the search says of it."""

import gc
import json
import re
import subprocess
import sys
import tempfile
import weakref

import optuna
import pytest
import torch
from optuna.trial import TrialState

from accmt import AcceleratorModule, Callback, ConfigError, RuleError, Trainer, set_seed
from accmt.hp_search import HyperParameterSearch


class Prune(optuna.pruners.BasePruner):
    """Prunes from an evaluation on."""

    def __init__(self, evaluation):
        self._evaluation = evaluation

    def prune(self, study, trial):
        return trial.last_step >= self._evaluation


class Told(Callback):
    """What callbacks are told of the end of each training."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def __deepcopy__(self, memo):
        return self  # one for all trials

    def on_fit_end(self):
        self.ends.append("end")

    def on_exception(self, exception):
        self.ends.append(type(exception).__name__)


def three_epochs(searching, **parameters):
    searching.set_parameters(**{"train_batch_size": 8, "epochs": 3, "learning_rate": 0.1, **parameters})
    return searching


@pytest.mark.parametrize("function", [None, lambda metrics: metrics["0"]["valid_loss"]])
def test_pruning_ends_a_trial_at_once(search, witness, function):
    told = Told()
    searching = three_epochs(search(callback=[witness, told]))
    study = searching.optimize(function, n_trials=2, pruner=Prune(2))
    losses = [[values["0"]["valid_loss"] for values in training["values"]] for training in witness.trainings]
    assert [len(values) for values in losses] == [2, 2]
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert [trial.intermediate_values for trial in study.trials] == [{1: v[0], 2: v[1]} for v in losses]
    assert told.ends == ["TrialPruned"] * 2


def test_the_median_prunes_what_is_worse(search, witness, in_order):
    searching = three_epochs(search(), learning_rate=(0.1, 0.05, 1e-6))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    sampler = in_order(learning_rate=[0.1, 0.05, 1e-6])
    study = searching.optimize(n_trials=3, sampler=sampler, pruner=pruner)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED]
    assert [len(training["values"]) for training in witness.trainings] == [3, 3, 1]


def test_without_a_pruner_every_trial_runs_to_its_end(search, witness, in_order):
    searching = three_epochs(search(), learning_rate=(0.1, 1e-6))
    searching.optimize(n_trials=7, sampler=in_order(learning_rate=[0.1] * 6 + [1e-6]))
    assert [len(training["values"]) for training in witness.trainings] == [3] * 7


def test_a_pruned_trial_is_no_best_trial(search, in_order):
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1

    searching = three_epochs(search(), learning_rate=(1e-6, 0.1))
    study = searching.optimize(n_trials=2, sampler=in_order(learning_rate=[1e-6, 0.1]), pruner=Second())
    assert study.trials[1].value < study.trials[0].value
    assert study.best_trial.number == 0


def test_a_trial_that_raises_does_not_end_the_search(search, regression, witness, in_order):
    class Fragile(regression):
        def training_step(self, batch):
            if len(batch[0]) == 4:
                raise RuntimeError("no memory for 4")
            return super().training_step(batch)

    searching = search(Fragile)
    searching.set_parameters(train_batch_size=[4, 8], learning_rate=0.1)
    study = searching.optimize(n_trials=3, sampler=in_order(train_batch_size=[8, 4, 8]))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    failed = study.trials[1]
    assert failed.user_attrs["error"] == (
        "RuntimeError: no memory for 4; raised in Fragile.training_step, epoch 1, step 0; "
        "its batch: [float32 (4, 4), float32 (4, 1)]"
    )
    assert 'raise RuntimeError("no memory for 4")' in failed.user_attrs["traceback"]
    assert study.trials[2].value == study.trials[0].value


def test_values_that_cannot_be_used_fail_alone(search, in_order):
    """A batch that is larger than the data gives no whole batch; smaller ones are fine."""
    searching = search(dataloader_drop_last=True)
    searching.set_parameters(train_batch_size=[8, 32], learning_rate=0.1)
    study = searching.optimize(n_trials=3, sampler=in_order(train_batch_size=[32, 8, 32]))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "FAIL"]
    assert "has no whole batch" in study.trials[0].user_attrs["error"]


def test_a_loss_that_is_never_a_number_is_a_failure(search, regression):
    class Broken(regression):
        def validation_step(self, key, batch):
            return torch.tensor(float("nan"))

    [trial] = three_epochs(search(Broken)).optimize(n_trials=1).trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"] == "NoValue: valid_loss has no value: valid_loss is nan"


@pytest.mark.proves("hp_search.HyperParameterSearch(get_module_fn)")
def test_a_module_that_cannot_be_made(search, regression):
    """At first it is a mistake; later it is a failed trial, such as one without memory."""
    made = []

    def make():
        made.append(1)
        if len(made) == fails_at:
            raise MemoryError("too large")
        return regression()

    fails_at = 1
    with pytest.raises(MemoryError):
        three_epochs(search(make)).optimize(n_trials=2)
    made.clear()
    fails_at = 2
    study = three_epochs(search(make)).optimize(n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_what_no_values_can_mend_ends_the_search(search, witness):
    study_of = {}

    class Keep(optuna.samplers.RandomSampler):
        def before_trial(self, study, trial):
            study_of["it"] = study

    with pytest.raises(RuleError, match="unknown metric 'acuracy'"):
        search(stop_when="acuracy > 0.5").optimize(n_trials=3, sampler=Keep())
    assert [trial.state.name for trial in study_of["it"].trials] == ["FAIL"]
    assert witness.trainings == []


def test_modules_and_data_are_checked_before_the_study_is_made(data, tmp_path):
    class Empty(AcceleratorModule):
        def __init__(self):
            pass

    storage = tmp_path / "search.db"
    with pytest.raises(ConfigError) as caught:
        HyperParameterSearch(Empty, data(8), []).optimize(storage=f"sqlite:///{storage}")
    assert "Empty: has no model" in str(caught.value)
    with pytest.raises(ConfigError, match=r"module: must be an AcceleratorModule \(.*\), not int"):
        HyperParameterSearch(int, data(8), data(8)).optimize(storage=f"sqlite:///{storage}")
    assert not storage.exists()


@pytest.mark.proves("hp_search.HyperParameterSearch(get_module_fn)")
def test_one_model_for_all_trials_is_refused(search, regression, witness):
    module = regression()
    with pytest.raises(ConfigError) as caught:
        three_epochs(search(lambda: module)).optimize(n_trials=3)
    assert str(caught.value) == (
        "1 mistake in HyperParameterSearch(...):\n"
        "  get_module_fn: returned the model of the previous trial: it must make a new one each time"
    )
    assert len(witness.trainings) == 1


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            {"hps_config": {"epochs": 3}},
            ["hps_config: the search chooses the hyperparameters: declare them with set_parameters"],
        ),
        (
            {"resume": True},
            [
                "resume: a trial starts from scratch: to continue a search, give optimize a storage, a study_name and "
                "load_if_exists"
            ],
        ),
        (
            {"disable_model_saving": False, "enable_checkpointing": True},
            [
                "disable_model_saving: False needs model_path: the folder of a trial is temporary",
                "enable_checkpointing: True needs model_path: the folder of a trial is temporary",
            ],
        ),
        (
            {"pacience": 3, "log_every": 0, "hps_config": {}},
            [
                "hps_config: the search chooses the hyperparameters: declare them with set_parameters",
                "pacience: unknown argument, did you mean 'patience'?",
                "log_every: must be a whole number from 1, -1 for every epoch, or None, not 0 (int)",
            ],
        ),
    ],
)
def test_mistakes_in_the_arguments(search, arguments, problems):
    with pytest.raises(ConfigError) as caught:
        search(**arguments)
    told = [str(problem) for problem in caught.value.problems]
    assert sorted(told) == sorted(problems)
    assert str(caught.value).splitlines()[0].endswith(" in HyperParameterSearch(...):")


def test_a_module_is_made_by_a_function(regression, data):
    with pytest.raises(ConfigError) as caught:
        HyperParameterSearch(regression(), data(8), data(8))
    assert str(caught.value) == (
        "1 mistake in HyperParameterSearch(...):\n"
        "  get_module_fn: is a Regression: every trial needs a new one, give the class or a function"
    )
    with pytest.raises(ConfigError) as caught:
        HyperParameterSearch("model", data(8), data(8))
    assert str(caught.value) == (
        "1 mistake in HyperParameterSearch(...):\n"
        "  get_module_fn: must be a function that makes a module, not 'model' (str)"
    )


def test_nothing_is_left_on_disk(search, witness, tmp_path, monkeypatch, regression):
    class Fragile(regression):
        def training_step(self, batch):
            if len(witness.trainings) == 2:
                raise RuntimeError("broken")
            return super().training_step(batch)

    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    study = three_epochs(search(Fragile)).optimize(n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    three_epochs(search()).optimize(n_trials=1, pruner=Prune(1))
    folders = {training["folder"] for training in witness.trainings}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "tmp"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "tmp"]


@pytest.mark.proves("hp_search.HyperParameterSearch(**trainer_kwargs)")
def test_with_a_model_path_each_trial_has_a_folder(search, tmp_path, witness):
    searching = three_epochs(search(model_path=tmp_path / "runs"))
    searching.optimize(n_trials=2)
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == ["trial-00000", "trial-00001"]
    for folder, training in zip(folders, witness.trainings, strict=True):
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert [entry["values"] for entry in history] == training["values"]
        assert not (folder / "best_valid_loss").exists()
        assert not (folder / "checkpoints").exists()


def test_trials_save_when_they_are_told_to(search, tmp_path, regression, witness, capsys):
    searching = three_epochs(
        search(model_path=str(tmp_path / "runs"), disable_model_saving=False, enable_checkpointing=True)
    )
    study = searching.optimize(n_trials=1)
    folder = tmp_path / "runs" / "trial-00000"
    saving = json.loads((folder / "best_valid_loss" / "saving.json").read_text())
    assert saving["values"] == {"valid_loss": study.best_value}
    regression().model.load_state_dict(torch.load(folder / "best_valid_loss" / "pytorch_model.bin"))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-0003-step-6"]
    set_seed(0)
    again = searching.optimize(n_trials=1)
    assert again.best_value == study.best_value
    assert [len(training["rates"]) for training in witness.trainings] == [6, 6]  # no checkpoint is continued from
    assert "Reporter" not in capsys.readouterr().out  # what the search adds to a training is nobody's to mend


@pytest.mark.proves("hp_search.HyperParameterSearch")
def test_trials_differ_in_their_values_only(search, witness, regression):
    """Weights, order of data and dropout are those of the first trial; other batches make another training."""
    searching = three_epochs(search(lambda: regression(dropout=0.3)))
    study = searching.optimize(n_trials=3)
    assert len({trial.value for trial in study.trials}) == 1
    assert witness.trainings[0]["values"] == witness.trainings[2]["values"]


@pytest.mark.proves("hp_search.HyperParameterSearch")
def test_the_best_trial_can_be_trained_again(search, regression, data, tmp_path):
    searching = three_epochs(search(), learning_rate=[1e-3, 1e-1], scheduler="LinearWithWarmup", epochs=(2, 3))
    set_seed(3)
    best = searching.optimize(n_trials=3).best_trial
    set_seed(3)
    module = regression()
    training = Trainer(best.user_attrs["hyperparameters"], tmp_path / "again", dataloader_num_workers=0)
    training.fit(module, data(16), data(8, 1))
    assert training.state.best_valid_loss == best.value


def test_memory_of_a_trial_is_free_before_the_next(search, regression):
    models = []

    def make():
        gc.collect()
        alive.append([model() is not None for model in models])
        module = regression()
        models.append(weakref.ref(module.model))
        return module

    class Second(Callback):
        def on_before_optimizer_step(self, optimizer):
            if len(models) == 2:
                raise RuntimeError("broken")

    alive = []
    three_epochs(search(make, callback=Second())).optimize(n_trials=3)
    assert alive == [[], [False], [False, False]]


def test_arguments_of_the_trainer_reach_the_trials(search, regression):
    kinds = set()

    class Watched(regression):
        def training_step(self, batch):
            kinds.add(self.accelerator.mixed_precision)
            return super().training_step(batch)

    study = three_epochs(search(Watched, mixed_precision="bf16", evaluate_every_n_steps=1)).optimize(n_trials=2)
    assert kinds == {"bf16"}
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[1, 2, 3, 4, 5, 6]] * 2


@pytest.mark.proves("hp_search.HyperParameterSearch(**trainer_kwargs)")
def test_rules_stop_trials_early(search, witness):
    study = three_epochs(search(patience=1), learning_rate=1e-9, epochs=50).optimize(n_trials=1)
    losses = [values["0"]["valid_loss"] for values in witness.now["values"]]
    assert witness.now["steps"] < 100
    assert study.best_value == min(losses)


def test_what_is_shown(search, regression, in_order, capsys):
    class Fragile(regression):
        def training_step(self, batch):
            if len(batch[0]) == 2:
                raise RuntimeError("too small")
            return super().training_step(batch)

    class Fourth(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 3

    searching = search(Fragile)
    searching.set_parameters(train_batch_size=[2, 4, 8], learning_rate=[1e-1, 1e-3])
    sampler = in_order(train_batch_size=[4, 8, 2, 8], learning_rate=[0.001, 0.1, 0.05])
    study = searching.optimize(n_trials=4, sampler=sampler, pruner=Fourth())
    shown = capsys.readouterr().out.splitlines()
    first, second = study.trials[0].value, study.trials[1].value
    assert shown[:3] == [
        f"study {study.study_name}: minimize valid_loss",
        "train_batch_size  2 | 4 | 8",
        "learning_rate     0.001 to 0.1, log scale",
    ]
    assert [line for line in shown if re.match(r"trial \d", line)] == [
        f"trial 0: train_batch_size 4, learning_rate 0.001; valid_loss {first:.6g} (the best)",
        f"trial 1: train_batch_size 8, learning_rate 0.1; valid_loss {second:.6g} (the best)",
        "trial 2: train_batch_size 2, learning_rate 0.05; failed: RuntimeError: too small; raised in "
        "Fragile.training_step, epoch 1, step 0; its batch: [float32 (2, 4), float32 (2, 1)] "
        f"(best: {second:.6g}, trial 1)",
        f"trial 3: train_batch_size 8, learning_rate 0.001; pruned after evaluation 1 (best: {second:.6g}, trial 1)",
    ]
    table = [line.split() for line in shown[shown.index("The best trials, minimize valid_loss") :]]
    assert table[1:4] == [
        ["trial", "valid_loss", "train_batch_size", "learning_rate"],
        ["1", f"{second:.6g}", "8", "0.1"],
        ["0", f"{first:.6g}", "4", "0.001"],
    ]
    assert shown[-1] == f"study {study.study_name}: 4 trials, 2 complete, 1 pruned, 1 failed"


def test_a_search_without_a_complete_trial_says_so(search, capsys):
    study = three_epochs(search()).optimize(n_trials=1, pruner=Prune(1))
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == [
        "no trial completed, so there is no best one",
        f"study {study.study_name}: 1 trials, 1 pruned",
    ]
    with pytest.raises(ValueError, match="No trials are completed yet"):
        _ = study.best_trial


def test_optuna_is_needed_for_a_search_only(search, monkeypatch):
    searching = search()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError) as caught:
        searching.optimize()
    text = "HyperParameterSearch needs Optuna, which is not installed: pip install optuna"
    assert str(caught.value) == text


def test_importing_the_search_imports_no_optuna():
    code = "import sys, accmt.hp_search; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_one_experiment_of_the_tracker_for_all_trials(search, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    tracking = {"log_with": "mlflow", "logging_dir": str(tmp_path / "store"), "additional_tracker_config": {"a": 1}}
    searching = three_epochs(search(**tracking))
    study = searching.optimize(n_trials=2, study_name="mine")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    [experiment] = [found for found in client.search_experiments() if found.name != "Default"]
    assert experiment.name == "mine"
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["trial"] for run in runs) == ["0", "1"]
    assert {run.data.params["a"] for run in runs} == {"1"}
    assert {run.data.metrics["val_loss"] for run in runs} == {trial.value for trial in study.trials}


def test_the_numbers_of_the_lines_are_those_of_the_study(search, capsys):
    study = three_epochs(search()).optimize(n_trials=2)
    numbers = re.findall(r"^trial (\d+):", capsys.readouterr().out, re.MULTILINE)
    assert list(map(int, numbers)) == [trial.number for trial in study.trials]
