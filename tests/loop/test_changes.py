"""A training that is continued after something was changed: what is kept, what starts fresh, and that it is said."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch

from accmt import FunctionMetric

ACCURACY = FunctionMetric("accuracy", lambda values: values.mean(), greater_is_better=True)


@pytest.fixture
def scored(trainer, regression, data, capsys):
    """Dataset -> accuracy at each evaluation, one an epoch -> the training, and what it printed."""

    def run(scores, *rules, epochs=None, offset=0, loss=1.0, **arguments):
        class Scored(regression):
            def validation_step(self, key, batch):
                score = scores[key][self.state.evaluations_done - offset]
                return {"loss": torch.tensor(loss), "accuracy": torch.full((len(batch[0]),), score)}

        length = offset + max(map(len, scores.values()))
        training = trainer(epochs=epochs or length, metrics=ACCURACY, **arguments)
        for rule in rules:
            training.register_model_saving(rule)
        capsys.readouterr()
        training.fit(Scored(), data(4), {key: data(4) for key in scores})
        return training, " ".join(capsys.readouterr().out.split())

    return run


def verdicts(training):
    return [decision.verdicts[0].outcome.value for decision in training.decisions]


def replayed(training, *arguments):
    command = [sys.executable, "-m", "accmt.cli.main", "replay", str(training.model_path), "--json", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()], ran.stderr


def recorded(training):
    return [json.loads(line) for line in (training.model_path / "decisions.jsonl").read_text().splitlines()]


def test_a_dataset_that_is_gone_counts_no_more(scored):
    scored({"dev": [0.5, 0.5], "test": [0.9, 0.9]}, "best_accuracy")
    training, shown = scored({"dev": [0.6, 0.55]}, "best_accuracy", offset=2)
    assert "note: the dataset 'test' is gone: its values are dropped" in shown
    assert "note: the rule 'best_accuracy' runs over other datasets: it starts fresh" in shown
    assert [decision.verdicts[0].values[0] for decision in training.decisions[2:]] == pytest.approx([0.6, 0.55])
    assert verdicts(training) == ["saved", "not better", "saved", "not better"]
    assert "the models that an earlier 'best_accuracy' saved were moved to" in shown
    aside = json.loads((training.model_path / "earlier-1" / "best_accuracy" / "saving.json").read_text())
    assert aside["values"]["accuracy"] == pytest.approx(0.7)


def test_a_rule_that_names_its_datasets_goes_on_when_another_comes(scored):
    scored({"dev": [0.8]}, "best_accuracy@dev", "best_avg(accuracy, 2)")
    training, shown = scored({"dev": [0.7], "test": [0.9]}, "best_accuracy@dev", "best_avg(accuracy, 2)", offset=1)
    assert "note: the dataset 'test' is new" in shown
    assert "'avg(accuracy, 2)' runs over other datasets: it starts fresh" in shown
    assert "the rule 'best_accuracy@dev'" not in shown
    assert verdicts(training) == ["saved", "not better"]
    assert training.decisions[1].verdicts[1].values == pytest.approx((0.8,))


def test_a_changed_patience_is_said(scored):
    scored({"dev": [0.8, 0.7]}, "best_accuracy", patience=2)
    training, shown = scored({"dev": [0.7, 0.7, 0.7]}, "best_accuracy", patience=3, offset=2)
    expected = "note: the patience of 'best_accuracy' was 2 and is 3: the evaluations without improvement count"
    assert expected in shown
    assert "note: patience" not in shown
    assert len(training.decisions) == 4
    decisions, notes = replayed(training)
    assert len(decisions) == 4
    assert notes.startswith("note: when the training was resumed, the patience of 'best_accuracy' was 2 and is 3")


def test_a_stop_between_evaluations_holds(trainer, regression, data, capsys):
    class Falling(regression):
        def training_step(self, batch):
            loss = super().training_step(batch)
            return loss * 0 if self.state.global_step == 2 else loss * 0 + 9

    def train():
        arguments = {"log_every": 1, "checkpoint_every": "2 steps", "evaluate_every_n_steps": 2}
        training = trainer(epochs=4, stop_when="train_loss < 0.5", **arguments)
        training.fit(Falling(), data(16), data(4))
        return training, capsys.readouterr().out

    first, _ = train()
    assert (first.state.global_step, first.decisions[-1].stop.asked_by) == (3, "train_loss < 0.5")
    again, shown = train()
    assert again.state.global_step == 3
    assert "stopped: the condition 'train_loss < 0.5' holds, after 3 steps" in shown
    # In the warning that nothing was trained, and in the last line.
    assert shown.count("the condition 'train_loss < 0.5' holds") == 2
    assert replayed(again)[0] == recorded(again)


@pytest.mark.parametrize("cadence", ["0.01 seconds", "0.02 seconds or 2 evaluations"])
def test_a_replay_knows_the_checkpoints_of_the_clock(trainer, regression, data, cadence):
    class Slow(regression):
        def validation_step(self, key, batch):
            time.sleep(0.01)
            return super().validation_step(key, batch)

    training = trainer(epochs=6, checkpoint_every=cadence)
    training.fit(Slow(), data(16), data(16))
    assert any(decision.checkpoint for decision in training.decisions)
    assert replayed(training)[0] == recorded(training)


def test_what_is_not_written_is_not_called_saved(scored):
    training, shown = scored({"dev": [0.9, 0.8]}, "best_accuracy", disable_model_saving=True)
    reason = training.decisions[0].verdicts[0].reason
    assert reason == "0.9 is the first, not written, as model saving is disabled"
    assert "best_accuracy accuracy █▁ nothing was saved" in shown
    assert replayed(training)[0] == recorded(training)
    assert not (training.model_path / "best_accuracy").exists()
    training, shown = scored({"dev": [0.7, 0.6]}, "best_accuracy", offset=2)
    assert "models that 'best_accuracy' saved are no longer in their folder: the rule forgets them" in shown
    assert verdicts(training)[2:] == ["saved", "not better"]
    assert (training.model_path / "best_accuracy" / "pytorch_model.bin").is_file()


def test_models_that_were_deleted_are_forgotten(scored):
    training, _ = scored({"dev": [0.5, 0.9, 0.7]}, "best_accuracy keep 2")
    kept = training.decisions[-1].verdicts[0].kept
    shutil.rmtree(training.model_path / "best_accuracy" / kept[0].folder)
    training, shown = scored({"dev": [0.6]}, "best_accuracy keep 2", offset=3)
    assert "models that 'best_accuracy' saved are no longer in their folder" in shown
    assert verdicts(training)[-1] == "saved"
    assert training.best("best_accuracy").values == {"accuracy": pytest.approx(0.7)}


def test_the_models_of_a_changed_rule_are_put_aside(scored):
    training, _ = scored({"dev": [0.9, 0.6, 0.7]}, "best_accuracy keep 3")
    training, shown = scored({"dev": [0.5]}, "best_accuracy", offset=3)
    assert "the models that an earlier 'best_accuracy' saved were moved to" in shown
    aside = training.model_path / "earlier-1" / "best_accuracy"
    assert len([path for path in aside.iterdir() if path.is_dir()]) == 3
    assert training.best("best_accuracy").values == {"accuracy": pytest.approx(0.5)}


def test_a_start_anew_overwrites_no_model(scored):
    scored({"dev": [0.9]}, "best_accuracy", "best_accuracy@dev")
    training, shown = scored({"dev": [0.1]}, "best_accuracy", resume=False)
    assert "note: the files of the earlier training were moved to" in shown
    aside = training.model_path / "earlier-1"
    names = {path.name for path in aside.iterdir()}
    assert names == {
        "checkpoints",
        "best_accuracy",
        "best_accuracy@dev",
        *("history.jsonl", "decisions.jsonl", "training.json", "run.json", "log.jsonl"),
    }
    former = json.loads((aside / "best_accuracy" / "saving.json").read_text())
    assert former["values"]["accuracy"] == pytest.approx(0.9)
    assert training.best("best_accuracy").values == {"accuracy": pytest.approx(0.1)}
    assert not (training.model_path / "best_accuracy@dev").exists()


def test_what_has_no_effect_without_validation_data_is_said(trainer, regression, data, capsys):
    trainer(epochs=1, metrics=ACCURACY, evaluate_every_n_steps=2).fit(regression(), data(8))
    shown = capsys.readouterr().out
    assert "warning: there are no validation data: metrics and evaluate_every have no effect" in shown
