"""Rules in Keras on torch: real trainings, whole, killed and resumed; and what is refused."""

import os
import signal
from pathlib import Path

import pytest
from launching import launch

os.environ["KERAS_BACKEND"] = "torch"  # read where keras is imported

import keras
import keras_program as program

from accmt.config.errors import ConfigError
from accmt.rules import Facts, Observation, Reported, RuleEngine, RuleError, Rules, SavingRule
from accmt.tracking.journal import read

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
PROGRAM = Path(program.__file__)


def decisions_in(folder):
    return [{k: v for k, v in entry.items() if k != "elapsed"} for entry in read(folder / "model/decisions.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    launch(PROGRAM, folder, preload=("keras",)).check()
    return folder


def test_it_decides_as_the_engine_does(whole):
    observed = [Observation.from_json(entry) for entry in read(whole / "model/history.jsonl")]
    reported = Reported(("dev", "ood"), greater_is_better=False)
    savings = tuple(SavingRule.parse(text, patience=3) for text in program.SAVE)
    engine = RuleEngine(Rules(savings), Facts({"mae": reported, "valid_loss": reported}, ("dev", "ood")))
    decided = [engine.after_evaluation(each) for each in observed]
    recorded = decisions_in(whole)
    assert [(entry["step"], entry["epoch"]) for entry in recorded] == [(8 * n, n) for n in range(1, len(recorded) + 1)]
    outcomes = [[verdict.outcome for verdict in decision.verdicts] for decision in decided]
    assert [[verdict["outcome"] for verdict in entry["verdicts"]] for entry in recorded] == outcomes
    assert [bool(entry["stop"]) for entry in recorded] == [bool(decision.stop) for decision in decided]


def test_the_best_model_is_read_by_keras(whole):
    model = keras.saving.load_model(whole / "model/best_mae@dev/model.keras")
    values = model.evaluate(*program.samples(16, 5), return_dict=True, verbose=0)
    best = min(entry["values"]["dev"]["mae"] for entry in read(whole / "model/history.jsonl"))
    assert values["mae"] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("kill", ["stop=20", "late=1"])
def test_killed_and_resumed_it_decides_the_same(whole, tmp_path, kill):
    """In the middle of an epoch, and between the state of the rules and the backup of Keras."""
    assert launch(PROGRAM, tmp_path, kill, preload=("keras",)).returncode == -signal.SIGKILL
    launch(PROGRAM, tmp_path, preload=("keras",)).check()
    assert decisions_in(tmp_path) == decisions_in(whole)


def test_generators_and_validation_freq(tmp_path):
    """The length of the first epoch is not known before its end."""
    inputs, targets = program.samples(24, 0)

    def batches():
        while True:
            for at in range(0, 24, 4):
                yield inputs[at : at + 4], targets[at : at + 4]

    rules = program.rules_in(tmp_path, patience=None, stop_when="step >= 15")
    given = {
        "validation_data": program.samples(16, 5),
        "validation_freq": 2,
        "steps_per_epoch": 6,
        "verbose": 0,
        "shuffle": False,
    }
    with pytest.warns(UserWarning, match="fit did not evaluate in epoch 1"):
        program.network().fit(batches(), epochs=4, callbacks=[rules], **given)
    assert [(entry["step"], entry["epoch"]) for entry in read(tmp_path / "decisions.jsonl")] == [(12, 2), (15, 2)]


def test_all_datasets_may_be_evaluated_by_the_rules(tmp_path):
    data = {"dev": program.samples(16, 5), "ood": program.samples(16, 7)}
    rules = program.rules_in(tmp_path, datasets=["dev"], held_out=["ood"], validation=data, save=["mae"])
    program.fit(program.network(), [rules], 2, validation_data=None)
    assert [entry["step"] for entry in read(tmp_path / "decisions.jsonl")] == [8, 16]
    assert rules.best("best_mae").values["mae"] > 0
    assert [name for line in read(tmp_path / "log.jsonl") for name in line.get("values", {}) if name.endswith("@ood")]


def test_one_dataset_and_the_training_loss(tmp_path):
    rules = program.Rules(tmp_path / "a", ["best_mae", "best_train_loss"], metrics={"mae": "min"})
    model = program.network()
    history = program.fit(model, [rules], 2).history
    assert rules.best("best_mae").values["mae"] == pytest.approx(min(history["val_mae"]))
    assert rules.best("best_train_loss").values["train_loss"] == pytest.approx(min(history["loss"]))
    program.fit(model, [rules], 3, initial_epoch=2)
    assert [entry["step"] for entry in read(tmp_path / "a/decisions.jsonl")] == [8, 16, 24]
    without = program.Rules(tmp_path / "b", "best_train_loss", datasets=[])
    program.fit(model, [without], 2, validation_data=None)
    assert without.best("best_train_loss") is not None


def test_a_later_epoch_without_a_state(tmp_path):
    with pytest.warns(UserWarning, match="has no state after epoch 1: the rules start from scratch"):
        program.fit(program.network(), [program.rules_in(tmp_path)], 2, initial_epoch=1)


def test_a_metric_that_is_not_reported(tmp_path):
    rules = program.rules_in(tmp_path / "a", metrics={"mae": "min", "f1": "max"})
    with pytest.raises(ValueError, match="the evaluation on 'dev' does not report f1, which Rules"):
        program.fit(program.network(), [rules], 1)
    assert not (tmp_path / "a/best_mae@dev").exists()
    named = program.rules_in(tmp_path / "b", ["error"], metrics={"error": "min"}, names={"mae": "error"})
    program.fit(program.network(), [named], 1)


def test_mistakes_are_errors_at_once(tmp_path):
    with pytest.raises(RuleError, match="unknown metric 'mea'"):
        program.rules_in(tmp_path, ["mea@dev"])
    every = {"evaluate_every": "epoch", "checkpoint_every": "epoch"}
    data = {"oud": program.samples(4, 0), "ood": iter([])}
    with pytest.raises(ConfigError) as caught:
        program.rules_in(tmp_path, datasets=["dev", "test", "ood"], validation=data, **every)
    assert str(caught.value) == (
        "5 mistakes in Rules(...):\n"
        "  evaluate_every: is not possible here: give validation_freq to fit\n"
        "  checkpoint_every: is not possible here: use keras.callbacks.BackupAndRestore\n"
        "  validation['oud']: is not in datasets or held_out: dev, test, ood\n"
        "  validation: must have all of dev, test but the one of fit(validation_data=)\n"
        "  validation['ood']: is used up by one evaluation: give arrays or a dataset"
    )
    with pytest.raises(ConfigError, match="datasets: are not known: name those of validation="):
        program.rules_in(tmp_path, ["mae"], datasets=None)
    assert not list(tmp_path.iterdir())


def test_data_of_fit_that_no_rule_knows_are_told(tmp_path):
    rules = program.Rules(tmp_path, datasets=[])
    with pytest.warns(UserWarning, match=r"fit\(validation_data=\) decides nothing: name it in datasets= or held_out="):
        program.fit(program.network(), [rules], 1)


def test_after_an_interruption_other_rules_use_the_folder(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    interrupted = program.rules_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        program.fit(program.network(), [interrupted, Interrupt()], 2)
    rules = program.rules_in(tmp_path)
    program.fit(program.network(), [rules], 2, initial_epoch=1)
    assert [entry["epoch"] for entry in read(tmp_path / "decisions.jsonl")] == [1, 2]
