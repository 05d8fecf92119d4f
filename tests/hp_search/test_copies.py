"""Each trial finds what was given to all of them as it was when the search began."""

import threading
from functools import partial

import pytest
import torch
from torch.utils.data import IterableDataset, RandomSampler, TensorDataset, default_collate

from accmt import Callback, ConfigError, FunctionMetric, TorchMetric
from accmt.hp_search import HyperParameterSearch

torchmetrics = pytest.importorskip("torchmetrics")


def values(searching, n_trials=3, **arguments):
    """The values of trials that do not differ in their hyperparameters."""
    searching.set_parameters(learning_rate=0.1, train_batch_size=4)
    return [trial.value for trial in searching.optimize(n_trials=n_trials, **arguments).trials]


class Decays(Callback):
    """A rate that falls from step to step, in a state of its own and in one that it holds."""

    def __init__(self, steps):
        super().__init__()
        self.count, self.steps = 0, steps

    def on_before_optimizer_step(self, optimizer):
        self.count += 1
        self.steps["done"] = self.steps.get("done", 0) + 1
        optimizer.param_groups[0]["lr"] = 1 / (self.count + self.steps["done"])


class Noise:
    """Makes batches that differ from one to the next."""

    def __init__(self):
        self.calls, self.generator = 0, torch.Generator().manual_seed(1)

    def __call__(self, samples, scale=1.0):
        self.calls += 1
        inputs, targets = default_collate(samples)
        noise = torch.randn(inputs.shape, generator=self.generator)
        return inputs + scale * self.calls * noise, targets


class Growing:
    """A metric's function that is greater each time."""

    def __init__(self):
        self.calls = 0

    def __call__(self, predictions, targets):
        self.calls += 1
        return float(self.calls)


def sampler(data):
    return RandomSampler(data, generator=torch.Generator().manual_seed(2))


GIVEN = {
    "a callback": lambda data: {"callback": Decays({})},
    "several": lambda data: {"callback": [Decays({}), Callback()]},
    "a function": lambda data: {"collate_fn": Noise()},
    "a partial function": lambda data: {"collate_fn_train": partial(Noise(), scale=2.0)},
    "a method": lambda data: {"collate_fn_val": Noise().__call__},
    "a sampler": lambda data: {"sampler": sampler(data)},
    "a list of samplers": lambda data: {"sampler": [sampler(data), sampler(data)]},
}


@pytest.mark.parametrize("name", GIVEN)
def test_trials_with_the_same_values_are_the_same(regression, data, name):
    training = data(16)
    given = GIVEN[name](training)
    found = values(HyperParameterSearch(regression, training, data(8, 1), dataloader_num_workers=0, **given))
    assert len(set(found)) == 1, found


def test_metrics_with_a_state(regression, data):
    """One that is never reset, and that of torchmetrics: the objects that were given stay as they were."""
    growing = FunctionMetric("error", Growing(), greater_is_better=False)
    error = torchmetrics.MeanSquaredError()
    kept = TorchMetric("kept", error, greater_is_better=False)

    class Both(regression):
        def validation_step(self, key, batch):
            outputs = super().validation_step(key, batch)
            return {**outputs, "kept": outputs["error"]}

    searching = HyperParameterSearch(
        Both, data(16), {"dev": data(8, 1)}, {"dev": [growing, kept]}, dataloader_num_workers=0
    )
    assert values(searching, objective="best_error") == [1.0] * 3
    assert len(set(values(searching, objective="best_kept"))) == 1
    assert growing.function.calls == 0
    assert error._update_count == 0


class Draws(TensorDataset):
    """Adds noise of a generator of its own."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.generator = torch.Generator().manual_seed(3)

    def __getitem__(self, index):
        inputs, targets = super().__getitem__(index)
        return inputs + torch.randn(inputs.shape, generator=self.generator), targets


class Continues(IterableDataset):
    """Goes on where it stopped, which its state says."""

    def __init__(self, samples):
        self.samples, self.place = samples, 0

    def __iter__(self):
        for _ in range(8):
            yield self.samples[self.place % len(self.samples)]
            self.place += 1

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def test_what_datasets_keep_is_put_back_and_they_are_shared(regression, data):
    drawing, stream = Draws(*data(16).tensors), Continues(data(12))
    for training in (drawing, stream):
        seen = []

        class Sees(Callback):
            def on_fit_start(self):
                seen.append(self.held)  # noqa: B023  (called in this round of the loop only)

        sees = Sees()
        sees.held = training
        searching = HyperParameterSearch(
            regression, training, Draws(*data(8, 1).tensors), callback=sees, dataloader_num_workers=0
        )
        assert len(set(values(searching))) == 1
        assert all(one is training for one in seen)


def test_what_cannot_be_copied_is_named_before_the_first_trial(regression, data):
    made = []

    class Locked(Callback):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    def make():
        made.append(regression())
        return made[-1]

    searching = HyperParameterSearch(
        make,
        data(16),
        data(8, 1),
        [
            FunctionMetric("error", Growing(), greater_is_better=False),
            FunctionMetric("other", partial(max, threading.Lock()), greater_is_better=False),
        ],
        callback=[Callback(), Locked()],
        dataloader_num_workers=0,
    )
    with pytest.raises(ConfigError) as caught:
        searching.optimize(n_trials=1)
    remedy = (
        "Create what cannot be copied in on_fit_start, or give the class a method __deepcopy__: if it returns self, "
        "the trials share the object"
    )
    said = "cannot be copied, and each trial needs its own: TypeError: cannot pickle '_thread.lock' object. "
    assert str(caught.value) == (
        f"2 mistakes in HyperParameterSearch(...):\n  metrics[1]: FunctionMetric {said}{remedy}\n"
        f"  callback[1]: Locked {said}{remedy}"
    )
    assert len(made) == 1  # the one that is looked at


def test_an_object_may_say_that_it_is_shared(regression, data):
    class Counts(Callback):
        def __init__(self):
            super().__init__()
            self.starts, self.lock = 0, threading.Lock()

        def on_fit_start(self):
            self.starts += 1

        def __deepcopy__(self, memo):
            return self

    counts = Counts()
    values(HyperParameterSearch(regression, data(16), data(8, 1), callback=counts, dataloader_num_workers=0))
    assert counts.starts == 3


def test_a_callback_of_an_earlier_training_brings_nothing_of_it(trainer, regression, data):
    """Its module and trainer are not copied, and the callback that was given keeps them."""
    decays = Decays({})
    training, module = trainer(callback=decays), regression()
    training.fit(module, data(8))
    module.__class__ = type("Uncopied", (regression,), {"__deepcopy__": None})
    done = decays.count
    searching = HyperParameterSearch(regression, data(16), data(8, 1), callback=decays, dataloader_num_workers=0)
    assert len(set(values(searching))) == 1
    assert (decays.module, decays.trainer, decays.count) == (module, training, done)
