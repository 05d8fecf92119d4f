"""One training at a time in a process: a second one is refused, and the first is as it is alone."""

import os
import threading

import pytest
import torch

from accmt import Callback, HyperParameterSearch, set_seed
from accmt.hyperparameters import ConfigError
from accmt.loop.exclusive import Busy, exclusive


class Calls(Callback):
    """Calls a function at one hook, every time."""

    def __init__(self, hook, function):
        super().__init__()
        self.function = function
        self.__class__ = type("Calls", (Callback,), {hook: lambda self, *arguments: self.function(self)})


def weights(module):
    return torch.cat([value.flatten() for value in module.model.state_dict().values()])


@pytest.fixture
def trained(trainer, regression, data):
    """A folder, arguments -> the trainer and the module after a training with dropout and two evaluations."""

    def train(path="model", **arguments):
        set_seed(0)
        module = regression(dropout=0.3)
        training = trainer(path, **arguments)
        training.fit(module, data(16), data(6, 1))
        return training, module

    return train


def in_thread(function):
    """What a function raises in a thread of its own; None if it does not."""
    raised = []

    def run():
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="second")
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_a_training_in_another_thread_is_refused_and_the_first_is_as_alone(trained, trainer, regression, data):
    _, alone = trained("alone")
    refused = []

    def other(callback):
        training = trainer("second")
        refused.append((in_thread(lambda: training.fit(spare, data(8))), training))

    set_seed(1)
    spare = regression()  # not made in the training, which would draw its weights from the same random state

    _, first = trained("first", callback=Calls("on_before_training_step", other))
    assert torch.equal(weights(alone), weights(first))
    assert len(refused) == 8
    for error, training in refused:
        assert isinstance(error, Busy)
        assert str(error) == (
            "fit cannot start: a training runs in another thread of this process (MainThread), and the two would share "
            "the random state and the state of Accelerate. Wait for it to end, or use a separate process for each"
        )
        assert training.state.global_step == 0
        assert not training.model_path.exists()


def test_two_threads_at_once(trainer, regression, data):
    """One trains, the other is refused before its first step; one after the other both train."""
    modules, trainings = [regression(), regression()], [trainer("0"), trainer("1")]
    begun, tried, ended = threading.Event(), threading.Event(), []

    class Waits(Callback):
        def on_fit_start(self):
            begun.set()
            assert tried.wait(300)

    slow = trainer("slow", callback=Waits())
    thread = threading.Thread(target=lambda: slow.fit(modules[0], data(8)))
    thread.start()
    assert begun.wait(300)
    try:
        with pytest.raises(Busy, match="fit cannot start: a training runs in another thread of this process"):
            trainings[1].fit(modules[1], data(8))
        with pytest.raises(Busy, match="evaluate cannot start: a training runs in another thread"):
            trainings[1].evaluate(modules[1], data(8))
        search = HyperParameterSearch(regression, data(8), data(4), dataloader_num_workers=0)
        with pytest.raises(Busy, match="optimize cannot start: a training runs in another thread"):
            search.optimize(n_trials=1)
    finally:
        tried.set()
        thread.join()
    ended.append(slow.state.global_step)
    trainings[1].fit(modules[1], data(8))
    assert [*ended, trainings[1].state.global_step] == [4, 4]


def test_outside_of_the_main_thread_a_training_is_the_same(trained):
    _, alone = trained("alone")
    result = []
    assert in_thread(lambda: result.append(trained("thread"))) is None
    assert torch.equal(weights(alone), weights(result[0][1]))


@pytest.mark.parametrize("hook", ["on_fit_start", "on_before_training_step", "on_evaluation_end", "on_fit_end"])
def test_a_training_in_a_hook_of_another_is_refused_and_changes_nothing(trained, trainer, regression, data, hook):
    _, alone = trained("alone")
    seen = []

    def nested(callback):
        with pytest.raises(Busy, match=r"fit cannot start: a training is running and has called it .*") as raised:
            callback.trainer.fit(callback.module, data(8))
        seen.append(str(raised.value))
        with pytest.raises(Busy, match=r"optimize cannot start: a training is running"):
            HyperParameterSearch(regression, data(8), data(4), dataloader_num_workers=0).optimize(n_trials=1)

    training, module = trained("outer", callback=Calls(hook, nested))
    assert torch.equal(weights(alone), weights(module))
    assert training.state.global_step == 8
    assert seen[0].endswith("Call it when fit has returned, or in a separate process")


HOOKS = [
    "on_fit_start",
    "on_epoch_start",
    "on_before_training_step",
    "on_before_backward",
    "on_after_backward",
    "on_after_optimizer_step",
    "on_epoch_end",
    "on_save_checkpoint",
    "on_fit_end",
]


def test_callbacks_may_evaluate_and_the_training_is_as_without(trained, trainer, regression, data, error_metric):
    """At any hook but those of its own evaluations: weights, values, state, and what module and callbacks know."""
    alone, before = trained("alone", metrics=error_metric(), checkpoint_every="3 steps")

    def evaluates(callback):
        known = (callback.state, callback.trainer, callback.module, callback.module.state, callback.module.tracker)
        modes = [part.training for part in callback.module.model.modules()]
        batch, step = callback.state.train_step, callback.state.global_step
        own = callback.trainer.evaluate(callback.module, {"test": data(5, 2)})
        again = callback.trainer.evaluate(callback.module, {"test": data(5, 2)})
        other = trainer("other", metrics=error_metric()).evaluate(another, data(5, 2))
        assert own == again
        values.append((own["test"]["error"], other["0"]["error"]))
        now = (callback.state, callback.trainer, callback.module, callback.module.state, callback.module.tracker)
        assert all(was is one for was, one in zip(known, now, strict=True))
        assert [part.training for part in callback.module.model.modules()] == modes
        assert (callback.state.train_step, callback.state.global_step) == (batch, step)

    set_seed(7)
    another = regression()
    expected = trainer("other", metrics=error_metric()).evaluate(another, data(5, 2))["0"]["error"]
    values = []
    callbacks = [Calls(hook, evaluates) for hook in HOOKS]
    training, after = trained("calls", metrics=error_metric(), checkpoint_every="3 steps", callback=callbacks)
    assert torch.equal(weights(before), weights(after))
    assert training.state.additional_metrics == alone.state.additional_metrics
    assert (training.model_path / "history.jsonl").read_text().count("\n") == 2
    assert {value for _, value in values} == {expected}
    ends = training.evaluate(after, {"test": data(5, 2)})["test"]["error"]
    assert values[-1][0] == ends
    assert len({own for own, _ in values}) > 3


@pytest.mark.parametrize("hook", ["on_before_validation_step", "on_after_validation_step"])
def test_an_evaluation_in_the_middle_of_another_is_refused(trained, data, hook):
    def nested(callback):
        callback.trainer.evaluate(callback.module, data(4))

    with pytest.raises(Busy, match="an evaluation of the training is running, and the two would share the state"):
        trained(callback=Calls(hook, nested))


def test_an_evaluation_that_calls_itself_is_refused(trained, data):
    """The hook is called for the evaluation that it makes, too."""
    with pytest.raises(Busy, match="evaluate cannot start: it was called in an evaluation: hooks are also called"):
        trained(
            callback=Calls("on_evaluation_end", lambda callback: callback.trainer.evaluate(callback.module, data(4)))
        )


def test_an_evaluation_while_a_training_is_prepared_is_refused(trainer, regression, data):
    training = trainer()

    class Early(regression):
        def get_optimizer(self):
            training.evaluate(self, data(4))

    with pytest.raises(Busy, match=r"the training is being prepared\. Call it in a callback, from on_fit_start on"):
        training.fit(Early(), data(8))


def test_an_evaluation_in_another_precision_is_refused(trained, trainer, data):
    seen = []

    def evaluates(callback):
        for precision in ("no", None):
            seen.append(trainer("other", mixed_precision=precision).evaluate(callback.module, data(4)))
        with pytest.raises(ConfigError) as raised:
            trainer("other", mixed_precision="bf16").evaluate(callback.module, data(4))
        seen.append(str(raised.value))

    _, alone = trained("alone")
    _, module = trained("calls", callback=Calls("on_fit_start", evaluates))
    assert torch.equal(weights(alone), weights(module))
    assert seen[0] == seen[1]
    assert seen[2] == (
        "1 mistake in evaluate(...):\n  mixed_precision: is bf16, and the training around this evaluation computes in "
        "no: give the same"
    )


def broken(kind):
    def raises(callback):
        raise kind

    return raises


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("hook", ["on_fit_start", "on_before_training_step", "on_evaluation_end"])
def test_the_process_is_free_again_however_a_training_ends(trained, kind, hook):
    with pytest.raises(kind):
        trained("first", callback=Calls(hook, broken(kind)))
    assert trained("second")[0].state.global_step == 8


def test_the_process_is_free_again_after_what_was_refused(trainer, regression, data):
    with pytest.raises(ConfigError):
        trainer("first").fit(regression(), None)
    with pytest.raises(ConfigError):
        trainer("first").evaluate(regression(), [])
    with pytest.raises(FileNotFoundError), exclusive("fit"):
        raise FileNotFoundError
    with exclusive("optimize"), exclusive("fit"):
        pass
    trainer("second").fit(regression(), data(8))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_free():
    """Also while another thread of the parent is about to begin."""
    with exclusive("fit"):
        child = os.fork()
        if child == 0:
            try:
                with exclusive("fit"):
                    os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(Busy), exclusive("fit"):
            pass
