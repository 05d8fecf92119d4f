"""What the state says at each moment of a training."""

import math
from dataclasses import asdict

import pytest
import torch

from accmt import Callback, FunctionMetric
from accmt.states import TrainingState

FIELDS = (
    "global_step",
    "train_step",
    "epoch",
    "is_end_of_epoch",
    "is_last_training_batch",
    "is_last_epoch",
    "evaluations_done",
    "finished",
    "num_checkpoints_made",
)


def snapshots(fields, *hooks):
    """A callback that takes the named fields of the state at the named hooks: hook -> tuples, in `seen`."""
    seen = {hook: [] for hook in hooks}

    def taking(hook):
        def take(self, *arguments):
            seen[hook].append(tuple(getattr(self.state, field) for field in fields))

        return take

    callback = type("Snapshots", (Callback,), {hook: taking(hook) for hook in hooks})()
    callback.seen = seen
    return callback


@pytest.mark.proves("states.TrainingState")
def test_a_new_state_and_that_of_a_trainer_that_has_not_trained(trainer):
    expected = {
        "global_step": 0,
        "train_step": 0,
        "val_step": 0,
        "epoch": 0,
        "is_end_of_epoch": False,
        "is_last_training_batch": False,
        "is_last_validation_batch": False,
        "is_last_epoch": False,
        "evaluations_done": 0,
        "additional_metrics": {},
        "patience_left": {},
        "best_train_loss": math.inf,
        "finished": False,
        "num_checkpoints_made": 0,
        "model_savings": {},
        "best_valid_loss": math.inf,
    }
    assert asdict(TrainingState()) == expected
    assert asdict(trainer().state) == expected
    assert TrainingState().additional_metrics is not TrainingState().additional_metrics


@pytest.mark.proves("states.TrainingState")
def test_a_state_can_be_made_with_values():
    given = {"global_step": 1, "train_step": 2, "val_step": 3, "epoch": 4, "is_end_of_epoch": True}
    given |= {"is_last_training_batch": True, "is_last_validation_batch": True, "is_last_epoch": True}
    given |= {"evaluations_done": 5, "additional_metrics": {"dev": {"f1": 0.5}}, "patience_left": {"best_f1": 2}}
    given |= {"best_train_loss": 0.25, "finished": True, "num_checkpoints_made": 6}
    state = TrainingState(*given.values())
    assert {name: getattr(state, name) for name in given} == given


STEPS = [
    # global_step, train_step, epoch, is_end_of_epoch, is_last_training_batch, is_last_epoch, evaluations_done
    (0, 0, 0, False, False, False, 0),
    (0, 1, 0, False, False, False, 0),
    (1, 2, 0, False, True, False, 0),
    (2, 0, 1, False, False, True, 1),
    (2, 1, 1, False, False, True, 1),
    (3, 2, 1, False, True, True, 1),
]


@pytest.mark.proves(
    "states.TrainingState(global_step)",
    "states.TrainingState(train_step)",
    "states.TrainingState(epoch)",
    "states.TrainingState(is_last_training_batch)",
    "states.TrainingState(is_last_epoch)",
    "states.TrainingState(evaluations_done)",
    "callbacks.Callback.on_epoch_start",
)
def test_the_counters_of_a_training_at_each_batch(trainer, regression, data):
    """Three batches an epoch, two to an optimizer step."""
    taken = snapshots(FIELDS[:7], "on_after_training_step", "on_epoch_start", "on_epoch_end", "on_evaluation_start")
    trainer(grad_accumulation_steps=2, callback=taken).fit(regression(), data(12), data(4))
    assert taken.seen["on_after_training_step"] == STEPS
    assert [values[:3] for values in taken.seen["on_epoch_start"]] == [(0, 0, 0), (2, 0, 1)]
    ends = [(global_step, epoch, ended) for global_step, _, epoch, ended, *_ in taken.seen["on_epoch_end"]]
    assert ends == [(2, 0, True), (4, 1, True)]
    evaluated = [(values[0], values[3], values[6]) for values in taken.seen["on_evaluation_start"]]
    assert evaluated == [(2, True, 0), (4, True, 1)]


@pytest.mark.proves("states.TrainingState(is_end_of_epoch)")
def test_the_end_of_an_epoch_is_said_at_its_last_step_only(trainer, regression, data):
    taken = snapshots(FIELDS, "on_evaluation_start", "on_after_zero_grad")
    trainer(evaluate_every_n_steps=1, callback=taken).fit(regression(), data(12), data(4))
    ended = [dict(zip(FIELDS, values, strict=True))["is_end_of_epoch"] for values in taken.seen["on_evaluation_start"]]
    assert ended == [False, False, True, False, False, True]


@pytest.mark.proves(
    "states.TrainingState(val_step)",
    "states.TrainingState(is_last_validation_batch)",
    "callbacks.Callback.on_before_validation_step",
    "callbacks.Callback.on_after_validation_step",
)
def test_where_an_evaluation_stands(trainer, regression, data):
    """The step within its dataset, and whether the batch is its last; each dataset starts anew."""
    fields = ("val_step", "is_last_validation_batch")
    taken = snapshots(fields, "on_before_validation_step", "on_after_validation_step")
    trainer(epochs=1, callback=taken).fit(regression(), data(8), {"a": data(9), "b": data(4)})
    expected = [(0, False), (1, False), (2, True), (0, True)]
    assert taken.seen == {"on_before_validation_step": expected, "on_after_validation_step": expected}


@pytest.mark.proves(
    "Trainer(eval_when_start)",
    "states.TrainingState(evaluations_done)",
    "states.TrainingState(finished)",
    "states.TrainingState(num_checkpoints_made)",
)
def test_evaluations_checkpoints_and_the_end(trainer, regression, data):
    fields = ("evaluations_done", "num_checkpoints_made", "finished")
    hooks = ("on_fit_start", "on_evaluation_end", "on_save_checkpoint", "on_epoch_end", "on_fit_end")
    taken = snapshots(fields, *hooks)
    training = trainer(callback=taken, eval_when_start=True)
    training.fit(regression(), data(8), data(4))
    assert taken.seen == {
        "on_fit_start": [(0, 0, False)],
        "on_evaluation_end": [(1, 0, False), (2, 0, False), (3, 1, False)],
        "on_save_checkpoint": [(2, 1, False), (3, 2, False)],
        "on_epoch_end": [(2, 0, False), (3, 1, False)],
        "on_fit_end": [(3, 2, True)],
    }
    assert training.state.finished


def test_counters_go_on_after_a_resume(trainer, regression, data):
    class Cut(regression):
        def training_step(self, batch):
            if self.state.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(batch)

    with pytest.raises(KeyboardInterrupt):
        trainer(epochs=1, checkpoint_every="3 steps").fit(Cut(), data(16), data(4))
    fields = ("global_step", "train_step", "epoch", "evaluations_done", "num_checkpoints_made", "finished")
    taken = snapshots(fields, "on_resume", "on_after_training_step", "on_fit_end")
    trainer(epochs=1, callback=taken).fit(regression(), data(16), data(4))
    assert taken.seen["on_resume"] == [(3, 3, 0, 0, 1, False)]
    assert taken.seen["on_after_training_step"] == [(3, 3, 0, 0, 1, False)]
    assert taken.seen["on_fit_end"] == [(4, 4, 0, 1, 2, True)]


class Given:
    """A module whose losses are given: of each training step, and of each evaluation by dataset."""

    def __new__(cls, regression, training, validation):
        class Module(regression):
            def training_step(self, batch):
                return super().training_step(batch) * 0 + training[self.state.global_step]

            def validation_step(self, key, batch):
                score = torch.full((len(batch[0]),), 10.0 * validation[key][self.state.evaluations_done])
                return {"loss": torch.tensor(validation[key][self.state.evaluations_done]), "score": (score,)}

        return Module()


@pytest.mark.proves(
    "states.TrainingState(additional_metrics)",
    "states.TrainingState(patience_left)",
    "states.TrainingState(best_train_loss)",
    "states.TrainingState(model_savings)",
    "states.TrainingState(best_valid_loss)",
)
def test_what_was_best_and_what_was_measured_last(trainer, regression, data):
    fields = ("best_train_loss", "best_valid_loss", "additional_metrics", "model_savings", "patience_left")
    taken = snapshots(fields, "on_evaluation_end")
    metric = FunctionMetric("score", lambda values: values.mean(), greater_is_better=False)
    training = trainer(epochs=3, callback=taken, metrics=metric, patience={"best_score": 3})
    training.register_model_saving("best_score")
    training.register_model_saving("best_train_loss")
    validation = {"a": [3.0, 1.0, 2.0], "b": [5.0, 4.0, 5.0]}
    training.fit(Given(regression, [4.0, 2.0, 6.0, 6.0, 1.0, 2.0], validation), data(8), {"a": data(4), "b": data(4)})
    rows = [dict(zip(fields, values, strict=True)) for values in taken.seen["on_evaluation_end"]]
    assert [row["best_train_loss"] for row in rows] == pytest.approx([3.0, 3.0, 1.5])
    assert [row["best_valid_loss"] for row in rows] == pytest.approx([4.0, 2.5, 2.5])
    assert [row["additional_metrics"] for row in rows] == [
        {"a": {"valid_loss": a, "score": 10 * a}, "b": {"valid_loss": b, "score": 10 * b}}
        for a, b in zip(validation["a"], validation["b"], strict=True)
    ]
    assert rows[-1]["model_savings"] == {"best_score": (25.0,), "best_train_loss": (pytest.approx(1.5),)}
    assert [row["patience_left"] for row in rows] == [{"best_score": left, "best_train_loss": -1} for left in (3, 3, 2)]


@pytest.mark.proves(
    "states.TrainingState(additional_metrics)",
    "states.TrainingState(best_train_loss)",
    "states.TrainingState(model_savings)",
    "states.TrainingState(best_valid_loss)",
)
def test_the_best_losses_are_kept_over_a_resume(trainer, regression, data):
    validation = {"0": [2.0, 3.0, 4.0]}
    trainer(epochs=1).fit(Given(regression, [1.0, 1.0], validation), data(8), data(4))
    longer = trainer(epochs=3)
    longer.fit(Given(regression, [9.0] * 6, validation), data(8), data(4))
    assert (longer.state.best_train_loss, longer.state.best_valid_loss) == pytest.approx((1.0, 2.0))
    assert longer.state.additional_metrics == {"0": {"valid_loss": 4.0}}
    assert longer.state.model_savings == {"best_valid_loss": (2.0,)}


@pytest.mark.proves("AcceleratorModule(state)")
def test_one_state_for_trainer_module_and_callbacks(trainer, regression, data):
    seen = []

    class Same(Callback):
        def on_fit_start(self):
            seen.append(self.state is self.trainer.state is self.module.state)

    trainer(epochs=1, callback=Same()).fit(regression(), data(4))
    assert seen == [True]
