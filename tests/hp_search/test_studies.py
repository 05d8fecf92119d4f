"""Where a study is kept, and how it goes on."""

import json

import optuna
import pytest
from optuna.trial import TrialState

from accmt import Callback, ConfigError


class Interrupt(Callback):
    """Ctrl-C in the second training."""

    def __init__(self):
        super().__init__()
        self.trainings = 0

    def __deepcopy__(self, memo):
        return self  # one for all trials

    def on_fit_start(self):
        self.trainings += 1
        if self.trainings == 2:
            raise KeyboardInterrupt


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path / 'search.db'}"


@pytest.fixture
def kept(search, storage):
    """Arguments of `optimize` -> the study `mine` in the storage, continued if it exists."""

    def run(searching=None, batch=(4, 8), **arguments):
        searching = searching or search()
        searching.set_parameters(train_batch_size=list(batch), learning_rate=[1e-3, 1e-1])
        arguments = {"storage": storage, "study_name": "mine", "load_if_exists": True, "n_trials": 2, **arguments}
        return searching.optimize(**arguments)

    return run


@pytest.mark.proves("hp_search.HyperParameterSearch.optimize(n_trials)")
def test_a_study_goes_on(kept, storage, witness):
    first = kept()
    second = kept(n_trials=3)
    assert [trial.number for trial in second.trials] == [0, 1, 2, 3, 4]
    assert [trial.params for trial in second.trials[:2]] == [trial.params for trial in first.trials[:2]]
    loaded = optuna.load_study(study_name="mine", storage=storage)
    assert len(witness.trainings) == len(loaded.trials) == 5
    assert [trial.value for trial in loaded.trials] == [
        min(values["0"]["valid_loss"] for values in training["values"]) for training in witness.trainings
    ]
    assert loaded.user_attrs == {"objective": "best_valid_loss"}


def test_until_the_study_has_enough_trials(kept, search, in_order, witness):
    """A script that is run again and again ends with as many trials as it asks for. Failed ones are made up for."""

    class Fails(Callback):
        def on_fit_start(self):
            if len(witness.trainings) == 2:
                raise RuntimeError("once")

    searching = search(callback=[witness, Fails()])
    assert len(kept(searching, n_trials=3, total_trials=4).trials) == 3
    study = kept(searching, n_trials=10, total_trials=4)
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 4
    assert len(study.trials) == 5
    assert len(kept(searching, n_trials=10, total_trials=4).trials) == 5


def test_an_interrupted_search_goes_on(kept, search, witness, storage, capsys):
    with pytest.raises(KeyboardInterrupt):
        kept(search(callback=[Interrupt(), witness]), n_trials=5)
    states = [trial.state for trial in optuna.load_study(study_name="mine", storage=storage).trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL]
    assert "study mine: 2 trials, 1 complete, 1 failed" in capsys.readouterr().out
    assert [trial.state for trial in kept().trials][2:] == [TrialState.COMPLETE] * 2


def test_a_study_that_exists_is_not_taken_by_accident(kept):
    kept(n_trials=1)
    with pytest.raises(ConfigError) as caught:
        kept(load_if_exists=False)
    assert str(caught.value) == (
        "1 mistake in optimize(...):\n  study_name: the storage has a study 'mine': load_if_exists=True continues it"
    )


def test_two_searches_are_not_mixed_in_one_study(kept, witness):
    kept(n_trials=1)
    with pytest.raises(ConfigError) as caught:
        kept(best_metric_fn=lambda metrics: 0.0, direction="maximize", batch=(4, 16))
    assert str(caught.value) == (
        "3 mistakes in optimize(...):\n"
        "  study_name: 'mine' is to minimize, not to maximize\n"
        "  study_name: 'mine' has the objective best_valid_loss, not best_metric_fn: choose another name\n"
        "  train_batch_size: 4 | 16 cannot continue the study 'mine', which has 4 | 8: choices stay as they are"
    )
    assert len(witness.trainings) == 1


def test_a_range_may_move_and_does_not_become_choices(kept, search, storage):
    kept(n_trials=1)
    searching = search()
    arguments = {"storage": storage, "study_name": "mine", "load_if_exists": True, "n_trials": 1}
    searching.set_parameters(train_batch_size=[4, 8], learning_rate=[1e-6, 1e-5])
    assert 1e-6 <= searching.optimize(**arguments).trials[1].params["learning_rate"] <= 1e-5
    searching.set_parameters(train_batch_size=[4, 8], learning_rate=(1e-6, 1e-5))
    with pytest.raises(ConfigError) as caught:
        searching.optimize(**arguments)
    assert str(caught.value).startswith(
        "1 mistake in optimize(...):\n"
        "  learning_rate: 1e-06 | 1e-05 cannot continue the study 'mine', which has FloatDistribution("
    )
    assert str(caught.value).endswith("): a range stays a range, and choices stay choices")


def test_a_storage_that_cannot_be_opened_is_named_without_its_password(search):
    with pytest.raises(ConfigError) as caught:
        search().optimize(storage="nonsense://user:secret@host/db")
    assert str(caught.value).startswith("1 mistake in optimize(...):\n  storage: cannot be opened: ")
    assert "secret" not in str(caught.value)


def test_a_storage_object(search, tmp_path):
    path = tmp_path / "journal.log"
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    search().optimize(storage=optuna.storages.JournalStorage(backend), study_name="mine", n_trials=1)
    operations = [json.loads(line) for line in path.read_text().splitlines()]
    assert any(operation.get("study_name") == "mine" for operation in operations)


def test_machines_share_a_study(kept, search, witness, storage):
    """While a trial runs here, another machine works on the same study: each has its own trial."""
    seen = []

    class Other(Callback):
        def on_fit_end(self):
            if not seen:
                study = optuna.load_study(study_name="mine", storage=storage)
                study.tell(study.ask(study.trials[0].distributions), 1.0)
                seen.extend((trial.number, trial.state) for trial in study.trials)

    study = kept(search(callback=[Other(), witness]), n_trials=2)
    assert seen == [(0, TrialState.RUNNING), (1, TrialState.COMPLETE)]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    assert len(witness.trainings) == 2


def test_optuna_is_quiet_and_as_loud_as_before_afterwards(search, capsys):
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        search().optimize(n_trials=1)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
        with pytest.raises(ConfigError):
            search().optimize(storage="sqlite:////nowhere/at/all.db")
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
    assert capsys.readouterr().err == ""
