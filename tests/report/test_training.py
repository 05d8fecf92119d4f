"""What a report reads from the folder of a training, and what it says of it."""

import json
import shutil

import pytest

from accmt.report.training import duration, read_training
from accmt.rules.reserved_names import DECISIONS, HISTORY, LOG, RUN, TRAINING
from accmt.tracking.step_log import LogLine


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def curves(training):
    return {f"{curve.metric}@{curve.dataset}" if curve.dataset else curve.metric: curve for curve in training.curves}


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the training's folder, to change."""
    return shutil.copytree(trained, tmp_path / "model")


def test_it_says_what_was_trained_how_it_ended_and_what_it_kept(trained):
    training = read_training(trained)
    assert training.about.startswith("A model of 5 parameters, trained on 20 samples for 40 of 60 steps (8 epochs, in ")
    assert training.outcome == "Stopped after epoch 8 (step 40): the condition 'epoch >= 8' holds"
    assert training.kept.startswith("best_valid_loss@dev, after epoch 8 (step 40): valid_loss@dev ")
    assert (training.end, training.stopped) == (40, 40)
    assert training.settings["optim_kwargs.lr"] == "0.05"
    assert [start["checkpoint"] for start in training.starts] == [None, "checkpoint-0002-step-10"]


def test_cards_say_where_a_model_lies_and_how_to_load_it(trained, copied):
    best, waiting, pareto = read_training(trained).cards
    assert best.words == "saves when valid_loss@dev is lower than at its last save"
    assert best.folder == str(trained / "best_valid_loss@dev")
    assert best.code == f"accmt.load_best('{trained}', module, 'best_valid_loss@dev')"
    last = lines_of(trained / DECISIONS)[-1]["verdicts"][0]["kept"][0]
    assert best.values == tuple(last["values"])
    assert [verdict.outcome for _, verdict in waiting.verdicts][:4] == ["blocked"] * 3 + ["saved"]
    assert [(one.name, one.metric) for one in pareto.objectives] == [("error@dev", "error"), ("error@test", "error")]
    shutil.rmtree(copied / "best_valid_loss@dev")
    gone = read_training(copied).cards[0]
    assert (gone.folder, gone.code, gone.values) == ("", "", best.values)


def test_curves_are_those_of_evaluations_and_of_each_step(trained):
    found = curves(read_training(trained))
    losses = [one["values"]["dev"]["valid_loss"] for one in lines_of(trained / HISTORY)]
    assert found["valid_loss@dev"].values == tuple(losses)
    assert found["valid_loss@dev"].steps == tuple(range(5, 45, 5))
    assert found["train_loss"].steps == tuple(range(1, 41))  # those that the interrupted start made are not there twice
    assert set(found["learning rate"].values) == {0.05}
    assert len(found["gradient norm"].values) == 40
    assert all(value > 0 for value in found["seconds per step"].values)


def test_events_are_in_the_log(trained):
    events = read_training(trained).events
    told = [(one.kind, one.step, one.text) for one in events if one.kind in ("resumed", "signal", "stop", "end")]
    assert told == [
        ("stop", 40, "the condition 'epoch >= 8' holds"),
        ("end", 13, "killed"),
        ("resumed", 10, "checkpoint-0002-step-10"),
        ("end", 40, "finished"),
    ]
    assert [one.step for one in events if one.kind == "checkpoint"] == list(range(5, 45, 5))
    assert sum(one.kind == "saved" for one in events) == sum(len(card.saves) for card in read_training(trained).cards)


def test_a_training_without_log_and_descriptions_is_reported_as_far_as_it_is_known(copied):
    for name in (LOG, RUN, TRAINING):
        (copied / name).unlink()
    training = read_training(copied)
    found = curves(training)
    assert found["train_loss"].steps == tuple(range(5, 45, 5))
    assert "learning rate" not in found
    assert training.about.startswith("A model, trained for 40 steps (8 epochs, in ")
    assert training.outcome.startswith("Stopped after epoch 8")
    assert training.cards[0].words == "a rule that training.json does not describe, such as one of an earlier start"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("FINISHED", "Trained to its end, step 40"),
        ("KILLED", "Interrupted at step 40"),
        ("FAILED", "Failed at step 40: ValueError: no"),
        ("checkpoint", "At step 40: it is still running, or its process was killed"),
    ],
)
def test_how_it_ended(copied, last, said):
    kept = [line for line in (copied / DECISIONS).read_text().splitlines() if '"stop": null' in line]
    (copied / DECISIONS).write_text("\n".join(kept) + "\n")
    with (copied / LOG).open("a") as file:
        file.write(json.dumps(LogLine(40, 0.0, {}, last, "ValueError: no").to_json()) + "\n")
    assert read_training(copied).outcome == said


def test_what_is_no_training_or_is_damaged_is_said(copied, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a training: it has no history\.jsonl"):
        read_training(tmp_path)
    with (copied / LOG).open("a") as file:
        file.write('{"step": -1}\n[]\n{"step": 1, "time": "x"}\nno')
    assert read_training(copied).outcome.startswith("Stopped")
    (copied / HISTORY).write_text("{}\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 1 is not an observation: step is missing"):
        read_training(copied)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.1234, "0.123 s"), (59, "59 s"), (90, "2 min"), (3660, "1 h 01 min"), (float("nan"), "an unknown time")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
