"""Every hook of a callback: when it is called, with what, what can be seen then, and what becomes of its exceptions."""

import inspect
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from accmt import Callback
from accmt.callbacks import HOOKS
from accmt.states import TrainingState

FAILURES = ("on_runtime_error", "on_cuda_out_of_memory", "on_keyboard_interrupt", "on_exception")
ARGUMENTS = {
    "on_before_backward": ["loss"],
    "on_before_optimizer_step": ["optimizer"],
    "on_after_optimizer_step": ["optimizer"],
    "on_before_scheduler_step": ["scheduler"],
    "on_after_scheduler_step": ["scheduler"],
    "on_before_zero_grad": ["optimizer"],
    "on_after_zero_grad": ["optimizer"],
    "on_before_training_step": ["batch"],
    "on_before_validation_step": ["batch"],
    **{name: ["exception"] for name in FAILURES},
}


def watching(look, hooks=HOOKS):
    """A callback that calls `look(callback, hook, arguments)` in each of the hooks."""

    def hook(name):
        return lambda self, *arguments: look(self, name, arguments)

    return type("Watching", (Callback,), {name: hook(name) for name in hooks})()


def weights_of(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.model.parameters()])


SCHEDULED = {"scheduler": "ExponentialLR", "scheduler_kwargs": {"gamma": 0.5}}


@pytest.fixture
def seen(trainer, regression, data):
    """hook -> what each of its calls was given, over a training of one epoch, an evaluation and a checkpoint."""
    calls = {name: [] for name in HOOKS}
    callback = watching(lambda callback, name, arguments: calls[name].append(arguments))
    trainer(epochs=1, callback=callback, hps=SCHEDULED).fit(regression(), data(8), data(6))
    return calls


ONCE = ("on_fit_start", "on_fit_end", "on_save_checkpoint", "on_epoch_start", "on_epoch_end", "on_evaluation_start")
NEVER = (*FAILURES, "on_resume")


@pytest.mark.proves(
    "callbacks.Callback",
    "callbacks.Callback.on_fit_start",
    "callbacks.Callback.on_fit_end",
    "callbacks.Callback.on_save_checkpoint",
    "callbacks.Callback.on_evaluation_start",
    "callbacks.Callback.on_evaluation_end",
    "callbacks.Callback.on_epoch_end",
    "callbacks.Callback.on_epoch_start",
)
def test_how_often_a_hook_is_called_and_with_how_many_arguments(seen):
    """Two optimizer steps and two validation steps."""
    times = dict.fromkeys(HOOKS, 2) | dict.fromkeys((*ONCE, "on_evaluation_end"), 1) | dict.fromkeys(NEVER, 0)
    for hook in HOOKS:
        names = list(inspect.signature(getattr(Callback, hook)).parameters)[1:]
        assert names == ARGUMENTS.get(hook, []), hook
        assert [len(arguments) for arguments in seen[hook]] == [len(names)] * times[hook], hook


@pytest.mark.proves(
    "callbacks.Callback.on_before_optimizer_step(optimizer)",
    "callbacks.Callback.on_after_optimizer_step(optimizer)",
    "callbacks.Callback.on_before_zero_grad(optimizer)",
    "callbacks.Callback.on_after_zero_grad(optimizer)",
    "callbacks.Callback.on_before_scheduler_step(scheduler)",
    "callbacks.Callback.on_after_scheduler_step(scheduler)",
)
def test_what_the_hooks_are_given(seen):
    assert all(type(batch) is list and batch[0].shape == (4, 4) for (batch,) in seen["on_before_training_step"])
    assert [len(batch[0]) for (batch,) in seen["on_before_validation_step"]] == [4, 2]
    for (loss,) in seen["on_before_backward"]:
        assert loss.dim() == 0
        assert loss.requires_grad
    optimizers = {id(o) for name, [n] in ARGUMENTS.items() if n == "optimizer" for (o,) in seen[name]}
    assert len(optimizers) == 1
    for name in ("on_before_optimizer_step", "on_after_optimizer_step", "on_before_zero_grad", "on_after_zero_grad"):
        [optimizer] = seen[name][0]
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    for name in ("on_before_scheduler_step", "on_after_scheduler_step"):
        [scheduler] = seen[name][0]
        assert scheduler.get_last_lr() == pytest.approx([0.0125])


@pytest.mark.proves("callbacks.Callback.on_before_backward(loss)")
def test_the_loss_before_the_backward_pass_is_that_of_the_training_step(trainer, regression, data):
    """With accumulation its share of the optimizer step."""
    returned, given = [], []

    class Kept(regression):
        def training_step(self, batch):
            returned.append(super().training_step(batch))
            return returned[-1]

    callback = watching(lambda callback, name, arguments: given.append(arguments[0]), ["on_before_backward"])
    trainer("one", epochs=1, callback=callback).fit(Kept(), data(8))
    assert all(one is other for one, other in zip(returned, given, strict=True))
    returned.clear()
    given.clear()
    trainer("two", epochs=1, callback=callback, grad_accumulation_steps=2).fit(Kept(), data(12))
    halves = [loss.item() / share for loss, share in zip(returned, (2, 2, 1), strict=True)]
    assert [loss.item() for loss in given] == pytest.approx(halves)


@pytest.mark.proves(
    "callbacks.Callback.on_before_backward",
    "callbacks.Callback.on_after_backward",
    "callbacks.Callback.on_before_optimizer_step",
    "callbacks.Callback.on_after_optimizer_step",
    "callbacks.Callback.on_before_zero_grad",
    "callbacks.Callback.on_after_zero_grad",
    "callbacks.Callback.on_before_scheduler_step",
    "callbacks.Callback.on_after_scheduler_step",
    "callbacks.Callback.on_before_training_step",
    "callbacks.Callback.on_after_training_step",
)
def test_gradients_weights_and_rates_change_between_the_hooks(trainer, regression, data):
    """Gradients are there from after the backward pass until they are reset; weights change in the optimizer step, and
    the learning rate in that of the scheduler."""
    seen = {}

    def look(callback, name, arguments):
        module = callback.module
        gradients = [parameter.grad is not None for parameter in module.model.parameters()]
        seen.setdefault(name, (weights_of(module), any(gradients), rates[0].param_groups[0]["lr"] if rates else 0.1))
        if name == "on_before_optimizer_step":
            rates.append(arguments[0])
            seen[name] = (weights_of(module), any(gradients), arguments[0].param_groups[0]["lr"])

    rates = []
    trainer(epochs=1, lr=0.1, callback=watching(look), hps=SCHEDULED).fit(regression(), data(4))
    order = [
        ("on_before_training_step", False, 0.1),
        ("on_after_training_step", False, 0.1),
        ("on_before_backward", False, 0.1),
        ("on_after_backward", True, 0.1),
        ("on_before_optimizer_step", True, 0.1),
        ("on_after_optimizer_step", True, 0.1),
        ("on_before_scheduler_step", True, 0.1),
        ("on_after_scheduler_step", True, 0.05),
        ("on_before_zero_grad", True, 0.05),
        ("on_after_zero_grad", False, 0.05),
    ]
    assert [(name, seen[name][1], seen[name][2]) for name, *_ in order] == order
    steps = [name for name, *_ in order]
    moved = [not torch.equal(seen[one][0], seen[other][0]) for one, other in pairwise(steps)]
    assert moved == [name == "on_after_optimizer_step" for name in steps[1:]]


@pytest.mark.proves(
    "callbacks.Callback(module)",
    "callbacks.Callback(state)",
    "callbacks.Callback(trainer)",
    "callbacks.Callback.on_fit_start",
    "callbacks.Callback.on_fit_end",
    "callbacks.Callback.on_save_checkpoint",
    "callbacks.Callback.on_evaluation_start",
    "callbacks.Callback.on_evaluation_end",
    "callbacks.Callback.on_epoch_end",
)
def test_what_there_is_at_the_other_hooks(trainer, regression, data):
    """Values at the end of an evaluation, a checkpoint on disk when it is made, all attributes from the start."""
    seen = {}

    def look(callback, name, arguments):
        assert callback.state is callback.trainer.state
        assert isinstance(callback.state, TrainingState)
        folder = callback.trainer.model_path / "checkpoints"
        seen[name] = (
            type(callback.module).__name__,
            bool(callback.state.additional_metrics),
            len(list(folder.iterdir())) if folder.exists() else 0,
        )

    callback = watching(look)
    assert (callback.module, callback.trainer, callback.state) == (None, None, None)
    trainer(epochs=1, callback=callback).fit(regression(), data(4), data(4))
    assert seen["on_fit_start"] == seen["on_evaluation_start"] == ("Regression", False, 0)
    assert seen["on_evaluation_end"] == seen["on_epoch_end"] == ("Regression", True, 0)
    assert seen["on_save_checkpoint"] == seen["on_fit_end"] == ("Regression", True, 1)


@pytest.mark.proves("callbacks.Callback(module)", "callbacks.Callback(state)")
def test_a_callback_may_be_told_its_module_and_state_before(regression):
    module, state = regression(), TrainingState(global_step=3)
    told = Callback(module, state)
    assert (told.module, told.state, told.trainer) == (module, state, None)
    alone = Callback(state=state)
    assert (alone.module, alone.state) == (None, state)


@pytest.mark.proves("callbacks.Callback.on_resume")
def test_a_resumed_training_tells_once(trainer, regression, data):
    calls = []
    callback = watching(lambda callback, name, arguments: calls.append(name))
    trainer(max_steps=2).fit(regression(), data(8))
    trainer(max_steps=3, callback=callback).fit(regression(), data(8))
    assert calls[:3] == ["on_fit_start", "on_resume", "on_epoch_start"]
    assert calls.count("on_resume") == 1


@pytest.mark.proves("Trainer(callback)")
def test_several_callbacks_are_called_in_their_order_at_each_hook(trainer, regression, data):
    calls = []
    callbacks = [watching(lambda callback, name, arguments, key=key: calls.append((name, key))) for key in "ab"]
    trainer(epochs=1, callback=callbacks).fit(regression(), data(4), data(4))
    assert len(calls) == 2 * 17
    assert [key for _, key in calls] == ["a", "b"] * 17
    assert [name for name, _ in calls[::2]] == [name for name, _ in calls[1::2]]
    trainer("none", epochs=1, callback=[]).fit(regression(), data(4), data(4))
    assert len(calls) == 2 * 17


ERRORS = [
    (ValueError("x"), "on_exception"),
    (MemoryError("x"), "on_exception"),
    (OSError("x"), "on_exception"),
    (AssertionError("x"), "on_exception"),
    (RuntimeError("x"), "on_runtime_error"),
    (NotImplementedError("x"), "on_runtime_error"),
    (torch.OutOfMemoryError("x"), "on_cuda_out_of_memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate"), "on_cuda_out_of_memory"),
    (KeyboardInterrupt("x"), "on_keyboard_interrupt"),
]


class Failing:
    """A module and training data that raise an error at one place."""

    def __init__(self, regression, place, error):
        class Module(regression):
            def training_step(self, batch):
                loss = super().training_step(batch)
                if place == "training_step":
                    raise error
                if place == "backward":
                    loss.register_hook(raising)
                return loss

            def validation_step(self, key, batch):
                if place == "validation_step":
                    raise error
                return super().validation_step(key, batch)

        def raising(gradient):
            raise error

        class Data(Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                if place == "data":
                    raise error
                return torch.ones(4), torch.ones(1)

        self.module, self.data = Module(), Data()


@pytest.mark.proves(
    "callbacks.Callback.on_runtime_error",
    "callbacks.Callback.on_runtime_error(exception)",
    "callbacks.Callback.on_cuda_out_of_memory",
    "callbacks.Callback.on_cuda_out_of_memory(exception)",
    "callbacks.Callback.on_keyboard_interrupt",
    "callbacks.Callback.on_keyboard_interrupt(exception)",
    "callbacks.Callback.on_exception",
    "callbacks.Callback.on_exception(exception)",
)
@pytest.mark.parametrize("place", ["training_step", "backward", "validation_step", "data"])
@pytest.mark.parametrize(("error", "hook"), ERRORS, ids=lambda value: value if isinstance(value, str) else repr(value))
def test_a_failure_is_told_to_its_hook_once_with_the_exception_and_goes_on(
    trainer, regression, data, place, error, hook
):
    told = []
    callback = watching(lambda callback, name, arguments: told.append((name, arguments)), FAILURES)
    failing = Failing(regression, place, error)
    with pytest.raises(type(error)) as caught:
        trainer(epochs=1, callback=callback, safe_steps=False).fit(failing.module, failing.data, data(4))
    assert caught.value is error
    assert told == [(hook, (error,))]


@pytest.mark.proves("callbacks.Callback")
@pytest.mark.parametrize("hook", [name for name in HOOKS if name not in (*FAILURES, "on_resume")])
def test_an_exception_in_a_callback_names_the_callback_and_the_hook(trainer, regression, data, hook):
    class Careless(Callback):
        pass

    def fail(self, *arguments):
        raise LookupError("oops")

    setattr(Careless, hook, fail)
    told = []
    telling = watching(lambda callback, name, arguments: told.append((name, str(arguments[0]))), FAILURES)
    training = trainer(epochs=1, callback=[Careless(), telling], hps=SCHEDULED)
    with pytest.raises(LookupError) as caught:
        training.fit(regression(), data(4), data(4))
    [note] = caught.value.__notes__
    assert note.startswith(f"raised in Careless.{hook}, epoch 1, step ")
    assert told == [("on_exception", "oops")]


def test_an_exception_in_on_resume_names_it_too(trainer, regression, data):
    class Careless(Callback):
        def on_resume(self):
            raise LookupError("oops")

    trainer(max_steps=1).fit(regression(), data(8))
    with pytest.raises(LookupError) as caught:
        trainer(max_steps=2, callback=Careless()).fit(regression(), data(8))
    assert caught.value.__notes__ == ["raised in Careless.on_resume, epoch 1, step 1"]


@pytest.mark.parametrize("hook", ["on_exception", "on_keyboard_interrupt"])
def test_an_exception_in_the_hook_of_a_failure_keeps_the_failure(trainer, regression, data, hook):
    """It is its context, so that both are in the traceback."""
    error = KeyboardInterrupt("first") if hook == "on_keyboard_interrupt" else ValueError("first")

    class Careless(Callback):
        pass

    def fail(self, exception):
        raise LookupError("second")

    setattr(Careless, hook, fail)
    failing = Failing(regression, "training_step", error)
    with pytest.raises(LookupError) as caught:
        trainer(epochs=1, callback=Careless()).fit(failing.module, failing.data)
    assert caught.value.__context__ is error
    assert caught.value.__notes__ == [f"raised in Careless.{hook}, epoch 1, step 0"]


def test_after_a_failure_the_module_is_as_before_and_can_be_trained(trainer, regression, data):
    class Once(regression):
        failed = False

        def training_step(self, batch):
            if not Once.failed:
                Once.failed = True
                raise ValueError("once")
            return super().training_step(batch)

    module = Once()
    model = module.model
    with pytest.raises(ValueError, match="once"):
        trainer(epochs=1).fit(module, data(8))
    assert module.model is model
    assert isinstance(model, nn.Sequential)
    training = trainer(epochs=1)
    training.fit(module, data(8))
    assert training.state.global_step == 2
