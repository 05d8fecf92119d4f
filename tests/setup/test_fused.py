"""Optimizers of torch make fused steps where nothing speaks against it, and the script says how to change that."""

import re
from types import SimpleNamespace

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, HyperParameters, Monitor, Trainer, set_seed
from accmt.loop.means import RunningSum
from accmt.setup.fused import leave_scaling, use_fused

QUICK = {"dataloader_num_workers": 0, "disable_model_saving": True, "log_every": None, "shuffle_train": False}
FUSED = ["Adagrad", "Adam", "AdamW", "SGD"]
CPU = SimpleNamespace(device=torch.device("cpu"), distributed_type=DistributedType.NO)
EXACT = {"rtol": 0, "atol": 0}


class Learner(AcceleratorModule):
    """Learns numbers from six features, or from images of one channel."""

    def __init__(self, model=None, seed=0):
        set_seed(seed)
        self.model = model or nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


class Kept(Callback):
    """Keeps the optimizer, and whether each step was fused; does something before each."""

    def __init__(self, then=lambda optimizer, state: None):
        super().__init__()
        self.then, self.optimizer, self.fused = then, None, []

    def on_before_optimizer_step(self, optimizer):
        self.optimizer = optimizer.optimizer
        self.then(self.optimizer, self.state)

    def on_after_optimizer_step(self, optimizer):
        self.fused.append([group.get("fused") for group in optimizer.param_groups])


def numbers(count=32):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def by_hand(module, optimizer, dataset, *, epochs=2, batch_size=4, clip=None):
    for _ in range(epochs):
        for start in range(0, len(dataset), batch_size):
            batch = [tensor.clone() for tensor in dataset[start : start + batch_size]]
            module.training_step(batch).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return module


def trained(module, folder, optimizer, kwargs, dataset=None, *, epochs=2, batch_size=4, clip=None, **arguments):
    kept = arguments.pop("callback", None) or Kept()
    arguments = {**QUICK, "checkpoint_every": None, "clip_grad": clip, "callback": kept, **arguments}
    hps = HyperParameters(epochs, None, batch_size, optimizer, kwargs)
    Trainer(hps, folder, **arguments).fit(module, dataset or numbers())
    return kept


def assert_same(one, other, **tolerance):
    for (name, mine), theirs in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.proves("hyperparameters.HyperParameters(optim_kwargs)")
@pytest.mark.parametrize("name", FUSED)
@settings(max_examples=8, deadline=None)
@given(
    is_fused=st.booleans(),
    lr=st.floats(1e-4, 0.1),
    weight_decay=st.sampled_from([0.0, 0.1]),
    maximize=st.booleans(),
    clip=st.sampled_from([None, 0.5]),
    batch_size=st.integers(3, 9),
)
def test_a_training_equals_a_loop_by_hand(tmp_path_factory, name, is_fused, clip, batch_size, **kwargs):
    """With fused steps unless `fused=False` is given, which leaves torch its own default; bit by bit."""
    module, alike = Learner(), Learner()
    given = kwargs if is_fused else {**kwargs, "fused": False}
    folder = tmp_path_factory.mktemp("fused") / "model"
    kept = trained(module, folder, name, given, clip=clip, batch_size=batch_size, quiet=True)
    own = getattr(torch.optim, name)(alike.model.parameters(), **kwargs, fused=True if is_fused else None)
    by_hand(alike, own, numbers(), clip=clip, batch_size=batch_size)
    assert_same(module, alike, **EXACT)
    assert all(step == [is_fused] for step in kept.fused)


def test_the_header_says_that_steps_are_fused(tmp_path, capsys):
    for kwargs, said in (({}, "SGD, fused, learning rate 0.1"), ({"fused": False}, "SGD, learning rate 0.1")):
        trained(Learner(), tmp_path / "model", "SGD", {"lr": 0.1, **kwargs})
        assert f"optimizer: {said}\n" in capsys.readouterr().out


class OwnSGD(torch.optim.SGD):
    pass


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 1, dtype=torch.complex64))

    def forward(self, inputs):
        return (inputs.to(torch.complex64) @ self.weight).abs()


def built(optimizer="SGD", model=None, accelerator=CPU, **kwargs):
    """How the groups of an optimizer are set before the first step."""
    hps = HyperParameters(optimizer=optimizer, optim_kwargs={"lr": 0.1, **kwargs})
    optimizer = hps.build_optimizer((model or Learner().model).named_parameters())
    before = [group.get("fused") for group in optimizer.param_groups]
    use_fused(optimizer, hps, accelerator)
    after = [group.get("fused") for group in optimizer.param_groups]
    return "fused" if after != before and all(after) else after


def on(device="cpu", distributed_type=DistributedType.NO):
    return SimpleNamespace(device=torch.device(device), distributed_type=distributed_type)


def transposed():
    model = nn.Linear(6, 1)
    model.weight = nn.Parameter(torch.ones(6, 2).t())
    return model


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "fused"),
        ({"fused": None, "foreach": None}, "fused"),
        ({"no_decay": ["bias"]}, "fused"),
        ({"optimizer": torch.optim.AdamW}, "fused"),
        ({"optimizer": "torch.optim.Adam"}, "fused"),
        ({"accelerator": on(distributed_type=DistributedType.MULTI_CPU)}, "fused"),
        ({"model": Learner().model.double()}, "fused"),
        ({"fused": False}, [False]),
        ({"foreach": True}, [None]),
        ({"foreach": False}, [None]),
        ({"differentiable": True}, [None]),
        ({"optimizer": "Adam", "capturable": True}, [None]),
        ({"lr": torch.tensor(0.1)}, [None]),
        ({"optimizer": "Adam", "betas": (torch.tensor(0.9), torch.tensor(0.99))}, [None]),
        ({"optimizer": "RMSprop"}, [None]),
        ({"optimizer": "LBFGS"}, [None]),
        ({"optimizer": OwnSGD}, [None]),
        ({"optimizer": lambda params, **kwargs: torch.optim.SGD(params, **kwargs)}, [None]),
        ({"model": Complex()}, [None]),
        ({"model": transposed()}, [None]),
        ({"model": nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)}, [None]),
        ({"accelerator": on("meta")}, [None]),
        ({"accelerator": on("mps")}, [None]),
        ({"accelerator": on(distributed_type=DistributedType.FSDP)}, [None]),
        ({"accelerator": on(distributed_type=DistributedType.DEEPSPEED)}, [None]),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),
)
def test_where_steps_are_fused(given, expected):
    assert built(**given) == expected


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_fused_step_may_be_capturable_on_the_cpu(name, tmp_path):
    kept = trained(Learner(), tmp_path / "model", name, {"fused": True, "capturable": True}, epochs=1)
    assert set(map(tuple, kept.fused)) == {(True,)}


def test_parameters_on_several_devices_are_not_fused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert built(model=model) == [None]


def test_an_optimizer_of_the_module_is_left_as_it_is(tmp_path):
    module, alike = Learner(), Learner()
    module.get_optimizer = lambda: torch.optim.Adam(module.model.parameters(), lr=0.1)
    kept = trained(module, tmp_path / "model", "SGD", {"lr": 0.1}, quiet=True)
    assert set(map(tuple, kept.fused)) == {(None,)}
    assert_same(module, by_hand(alike, torch.optim.Adam(alike.model.parameters(), lr=0.1), numbers()), **EXACT)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_gradients_are_not_fused(name, tmp_path):
    module, alike = (Learner(nn.Embedding(4, 3, sparse=True)) for _ in range(2))
    data = TensorDataset(torch.arange(4).repeat(4), torch.ones(16, 3))
    kept = trained(module, tmp_path / "model", name, {"lr": 0.1}, data, quiet=True)
    assert set(map(tuple, kept.fused)) == {(None,)}
    assert_same(module, by_hand(alike, getattr(torch.optim, name)(alike.model.parameters(), lr=0.1), data), **EXACT)


@pytest.mark.parametrize("name", FUSED)
def test_what_a_fused_kernel_would_misread_is_not_fused(name, tmp_path):
    """Gradients laid out in memory in another way than their parameters: at some steps of a training."""

    def turn(optimizer, state):
        for parameter in optimizer.param_groups[0]["params"]:
            if parameter.dim() == 2 and 2 <= state.global_step < 5:
                parameter.grad = parameter.grad.t().contiguous().t()

    module, alike = Learner(), Learner()
    kwargs = {"lr": 0.05, **({"momentum": 0.9} if name == "SGD" else {})}
    kept = trained(module, tmp_path / "model", name, kwargs, callback=Kept(turn), quiet=True)
    assert [step for [step] in kept.fused[:6]] == [True, True, None, None, None, True]
    by_hand(alike, getattr(torch.optim, name)(alike.model.parameters(), **kwargs), numbers())
    assert_same(module, alike)


def images():
    inputs = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs.mean((1, 2, 3))[:, None, None, None].expand(8, 2, 4, 4).contiguous())


@pytest.mark.proves("Trainer(resume)")
@pytest.mark.parametrize("kwargs", [{"lr": 0.05}, {"lr": 0.05, "fused": True}], ids=str)
def test_a_resume_keeps_the_layout_of_a_state_in_memory(kwargs, tmp_path):
    """A fused kernel, where the script asks for it, relies on the layout of states and gradients."""
    make = lambda: Learner(nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last))  # noqa: E731
    module, alike = make(), make()
    for epochs, one in ((1, make()), (3, module)):
        kept = trained(one, tmp_path / "model", "Adam", kwargs, images(), epochs=epochs, checkpoint_every="epoch")
    states = kept.optimizer.state[module.model.weight]
    assert states["exp_avg"].stride() == module.model.weight.stride()
    by_hand(alike, torch.optim.Adam(alike.model.parameters(), **kwargs), images(), epochs=3)
    assert_same(module, alike, **EXACT)


STARTS = {
    "of torch's default": ({"fused": False}, True),
    "before steps were fused": ({}, False),
    "fused by the script": ({"fused": True}, True),
    "fused": ({}, True),
    "one by one": ({"foreach": False}, True),
}
ENDS = {"": ({}, True), "unfused": ({"fused": False}, False), "foreach": ({"foreach": True}, None)}


@pytest.mark.proves("Trainer(resume)")
@pytest.mark.parametrize("name", ["Adam", *(pytest.param(name, marks=pytest.mark.full) for name in ("Adagrad", "SGD"))])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("start", STARTS)
def test_how_steps_are_made_is_the_scripts(start, end, name, tmp_path, capsys, monkeypatch):
    """Whatever a checkpoint was made with, it is resumed, and only what the script changes is said."""
    (before, is_offered), (after, fused) = STARTS[start], ENDS[end]
    if not is_offered:
        monkeypatch.setattr("accmt.setup.build.use_fused", lambda *_: None)
    module, alike, folder = Learner(), Learner(), tmp_path / "model"
    trained(Learner(), folder, name, {"lr": 0.05, **before}, epochs=1, checkpoint_every="epoch", quiet=True)
    monkeypatch.undo()
    capsys.readouterr()
    kept = trained(module, folder, name, {"lr": 0.05, **after}, checkpoint_every="epoch")
    assert set(map(tuple, kept.fused)) == {(fused,)}
    said = [line for line in capsys.readouterr().out.splitlines() if "fused was" in line or "foreach was" in line]
    changed = [key for key in ("foreach", "fused") if before.get(key, "not given") != after.get(key, "not given")]
    texts = [f"{key} was {before.get(key, 'not given')} and is {after.get(key, 'not given')}" for key in changed]
    assert sorted(said) == [f"note: {text}" for text in texts]
    by_hand(alike, getattr(torch.optim, name)(alike.model.parameters(), lr=0.05), numbers())
    assert_same(module, alike)


def test_parameters_that_are_unfrozen_later_are_fused_too(tmp_path):
    """Also those for which the optimizer gets a group of its own, and after a resume."""

    class Growing(Learner):
        def __init__(self):
            super().__init__()
            self.model[0].requires_grad_(False)

        def training_step(self, batch):
            self.model[0].requires_grad_(self.state.global_step >= 4)
            return super().training_step(batch)

    kwargs = {"lr": 0.05, "weight_decay": 0.1, "no_decay": ["0.bias", "2"]}
    module, whole = Growing(), Growing()
    kept = trained(whole, tmp_path / "whole", "Adagrad", kwargs, quiet=True)
    assert [len(step) for step in kept.fused] == [1] * 5 + [2] * 11
    assert all(all(step) for step in kept.fused)
    for epochs in (1, 2):
        module = Growing()
        kept = trained(
            module, tmp_path / "model", "Adagrad", kwargs, epochs=epochs, checkpoint_every="epoch", quiet=True
        )
    assert all(step == [True, True] for step in kept.fused)
    assert_same(module, whole, **EXACT)


@pytest.mark.parametrize("kwargs", [{"nesterov": True}, {"dampening": 0.5}], ids=str)
def test_a_momentum_may_begin_later_than_the_others(kwargs, tmp_path):
    """The kernel of torch refuses this: a step that begins some of them is torch's default."""

    class Late(Learner):
        is_late = False

        def training_step(self, batch):
            features = self.model[:2](batch[0])
            return nn.functional.mse_loss(self.model[2](features if self.is_late else features.detach()), batch[1])

    class Switching(Kept):
        def on_epoch_end(self):
            module.is_late = True

    module, alike, kwargs = Late(), Late(), {"lr": 0.05, "momentum": 0.9, **kwargs}
    kept = trained(module, tmp_path / "model", "SGD", kwargs, callback=Switching(), quiet=True)
    assert [step for step, (is_fused,) in enumerate(kept.fused) if not is_fused] == [8]
    optimizer = torch.optim.SGD(alike.model.parameters(), **kwargs)
    for alike.is_late in (False, True):
        by_hand(alike, optimizer, numbers(), epochs=1)
    assert_same(module, alike)


@pytest.mark.parametrize("kwargs", [{}, {"fused": True}], ids=["by default", "by the script"])
@pytest.mark.parametrize("name", FUSED)
def test_a_step_that_fp16_skips_is_known(name, kwargs):
    """A scaler leaves skipping to kernels that torch marks for it, and then the scheduler would step."""
    parameter = nn.Parameter(torch.ones(2))
    hps = HyperParameters(optimizer=name, optim_kwargs={"lr": 0.1, **kwargs})
    optimizer = hps.build_optimizer([("weight", parameter)])
    leave_scaling(optimizer)
    use_fused(optimizer, hps, CPU)
    accelerated = AcceleratedOptimizer(optimizer, scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    for gradient, is_skipped in ((4.0, False), (float("inf"), True), (2.0, False)):
        before = parameter.detach().clone()
        accelerated.scaler.scale(parameter.sum())
        parameter.grad = torch.full((2,), gradient)
        accelerated.step()
        assert accelerated.step_was_skipped is is_skipped
        assert torch.equal(parameter, before) is is_skipped
        assert is_skipped or torch.equal(parameter.grad, torch.ones(2))  # unscaled
    assert optimizer.param_groups[0]["fused"] is True


class HostReads(TorchDispatchMode):
    """Counts the values that are read from tensors, for each of which a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class Between(Callback):
    """Counts from the third step to the sixth."""

    def __init__(self):
        super().__init__()
        self.reads = HostReads()

    def on_before_training_step(self, batch):
        if self.state.global_step == 2:
            self.reads.__enter__()
        elif self.state.global_step == 6:
            self.reads.__exit__(None, None, None)
            torch.ones(1).item()


@pytest.mark.parametrize("clip", [{"clip_grad": 1.0}, {"clip_grad_value": 0.1, "clip_grad": None}, {"clip_grad": None}])
@pytest.mark.parametrize("name", FUSED)
def test_a_step_reads_no_value_from_the_device(name, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(RunningSum, "add", lambda *_: None)  # on the CPU only, it reads the loss
    watched = Between()
    hps = HyperParameters(1, None, 4, name, {"lr": 0.05})
    arguments = {**QUICK, "quiet": True, "checkpoint_every": None, "monitor": Monitor(grad_norm=True), **clip}
    Trainer(hps, tmp_path / "model", callback=watched, **arguments).fit(Learner(), numbers())
    assert watched.reads.count == 0
    with watched.reads:
        torch.ones(1).item()
    assert watched.reads.count == 1
