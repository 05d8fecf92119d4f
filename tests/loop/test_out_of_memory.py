"""A step that runs out of memory is tried once more, with nothing lost and nothing counted twice."""

import gc
import weakref

import pytest
import torch

from accmt import Callback
from accmt.loop.out_of_memory import clean_caches

ERRORS = [torch.OutOfMemoryError("out of memory"), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")]


class Failing:
    """A module whose forward or backward pass runs out of memory at given calls."""

    def __new__(cls, regression, error, *, forward=(), backward=(), validation=()):
        class Module(regression):
            calls = backward_calls = validation_calls = 0

            def training_step(self, batch):
                Module.calls += 1
                loss = super().training_step(batch)
                if Module.calls in forward:
                    raise error
                loss.register_hook(lambda gradient: self._fail())
                return loss

            def _fail(self):
                Module.backward_calls += 1
                if Module.backward_calls in backward:
                    # Some gradients of this batch are there already, as when memory runs out half-way.
                    next(self.model.parameters()).grad = torch.ones_like(next(self.model.parameters()))
                    raise error

            def validation_step(self, key, batch):
                Module.validation_calls += 1
                if Module.validation_calls in validation:
                    raise error
                return super().validation_step(key, batch)

        return Module()


def weights(module):
    return [parameter.detach().clone() for parameter in module.model.parameters()]


def trained(trainer, module, data, path, **arguments):
    torch.manual_seed(0)
    training = trainer(path, epochs=1, shuffle_train=False, **arguments)
    training.fit(module, data(20), data(6))
    return training


@pytest.mark.proves("Trainer(safe_steps)")
@pytest.mark.parametrize("error", ERRORS, ids=["OutOfMemoryError", "RuntimeError"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("where", [{"forward": (2,)}, {"backward": (2,)}, {"backward": (5,)}, {"validation": (2,)}])
def test_once_is_as_if_nothing_had_happened(trainer, regression, data, error, accumulation, where):
    plain = regression()
    start = {name: value.clone() for name, value in plain.model.state_dict().items()}
    expected = trained(trainer, plain, data, "plain", grad_accumulation_steps=accumulation)
    failing = Failing(regression, error, **where)
    failing.model.load_state_dict(start)
    training = trained(trainer, failing, data, "failing", grad_accumulation_steps=accumulation)
    for mine, other in zip(weights(failing), weights(plain), strict=True):
        assert torch.equal(mine, other)
    assert training.state.global_step == expected.state.global_step
    assert training.state.additional_metrics == expected.state.additional_metrics
    assert training.state.best_train_loss == expected.state.best_train_loss


class Told(Callback):
    def __init__(self):
        super().__init__()
        self.hooks = []

    def on_cuda_out_of_memory(self, exception):
        self.hooks.append("on_cuda_out_of_memory")

    def on_runtime_error(self, exception):
        self.hooks.append("on_runtime_error")

    def on_exception(self, exception):
        self.hooks.append("on_exception")


@pytest.mark.proves("Trainer(safe_steps)")
@pytest.mark.parametrize("error", ERRORS, ids=["OutOfMemoryError", "RuntimeError"])
@pytest.mark.parametrize("where", [{"forward": (2, 3)}, {"backward": (2, 3)}, {"validation": (1, 2)}])
def test_twice_is_told_shown_and_raised(trainer, regression, data, capsys, error, where):
    told = Told()
    with pytest.raises(type(error)) as caught:
        trained(trainer, Failing(regression, error, **where), data, "twice", callback=told)
    assert caught.value is error
    assert told.hooks == ["on_cuda_out_of_memory"]
    shown = capsys.readouterr().out
    if torch.cuda.is_available():
        assert "Out of memory. Processes that use the GPUs" in shown
    else:
        assert "out of memory; the processes that use the GPUs cannot be listed: NVML Shared Library Not Found" in shown


@pytest.mark.proves("Trainer(safe_steps)")
def test_without_safe_steps_once_is_enough(trainer, regression, data, capsys):
    module = Failing(regression, ERRORS[0], forward=(2,))
    with pytest.raises(torch.OutOfMemoryError):
        trained(trainer, module, data, "unsafe", safe_steps=False)
    assert type(module).calls == 2
    assert "use the GPUs" not in capsys.readouterr().out


def test_another_error_is_not_tried_again(trainer, regression, data):
    told = Told()
    module = Failing(regression, RuntimeError("shapes differ"), forward=(2,))
    with pytest.raises(RuntimeError, match="shapes differ"):
        trained(trainer, module, data, "other", callback=told)
    assert type(module).calls == 2
    assert told.hooks == ["on_runtime_error"]


def test_what_the_failed_step_held_is_freed_before_it_is_tried_again(trainer, regression, data):
    held = []

    class Module(regression):
        calls = 0

        def training_step(self, batch):
            Module.calls += 1
            if Module.calls == 3:
                activations = self.model[0](batch[0])
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("out of memory")
            if Module.calls == 4:
                gc.collect()
                held.append(held[0]() is None)
            return super().training_step(batch)

    trained(trainer, Module(), data, "held")
    assert held[1] is True


def test_cleaning_frees_what_is_held_by_itself():
    class Node:
        pass

    node = Node()
    node.itself, held = node, weakref.ref(node)
    gc.disable()
    try:
        del node
        assert held() is not None
        clean_caches()
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.proves("Trainer(cleanup_cache_every_n_steps)")
@pytest.mark.parametrize(
    ("arguments", "cleaned"),
    [
        ({}, [5, 10]),
        ({"evaluate_every_n_steps": 2}, [2, 4, 5, 6, 8, 10]),
        ({"cleanup_cache_every_n_steps": 3}, [3, 5, 6, 9, 10]),
    ],
)
def test_when_caches_are_cleaned(trainer, regression, data, monkeypatch, arguments, cleaned):
    steps = []
    training = trainer(epochs=2, **arguments)
    for module in ("accmt.loop.train", "accmt.loop.evaluation_step"):
        monkeypatch.setattr(f"{module}.clean_caches", lambda: steps.append(training.state.global_step))
    training.fit(regression(), data(20), data(4))
    assert list(dict.fromkeys(steps[: len(cleaned)])) == cleaned
