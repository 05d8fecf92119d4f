"""Optimizers that evaluate the loss several times a step train as a loop by hand with a closure does."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from launching import launch
from torch import nn

from accmt import AcceleratorModule, Callback, ConfigError, ExtendedAcceleratorModule, Trainer
from accmt.loop.closure import ClosureStepper, closure_problem, needs_closure

STRONG = {"lr": 1.0, "max_iter": 6, "line_search_fn": "strong_wolfe"}
FIXED = {"lr": 0.1, "max_iter": 4}


@pytest.fixture
def lbfgs(tmp_path):
    """Arguments of LBFGS and of the trainer -> a trainer of two epochs of batches of 4 in their own order."""

    def make(kwargs, path="model", *, epochs=2, hps=None, **arguments):
        settings = {"epochs": epochs, "batch_size": 4, "optimizer": "LBFGS", "optim_kwargs": kwargs, **(hps or {})}
        defaults = {"clip_grad": None, "shuffle_train": False, "dataloader_num_workers": 0}
        return Trainer(settings, tmp_path / path, **{**defaults, **arguments})

    return make


class Counting(AcceleratorModule):
    """Writes down each call: the step, the batch of the epoch, whether it is the last, and the loss."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def training_step(self, batch):
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        place = self.state.global_step, self.status_dict["epoch_step"], self.state.is_last_training_batch
        self.calls.append((*place, loss.item()))
        return loss


def by_hand(model, dataset, kwargs, *, accumulation=1, clip=None, epochs=2, make=torch.optim.LBFGS):
    """Plain PyTorch: the loss of each batch before each step, the norm of its gradients, and the calls of the model."""
    optimizer = make(model.parameters(), **kwargs)
    batches = [tuple(column[i : i + 4] for column in dataset.tensors) for i in range(0, len(dataset), 4)]
    losses, norms, calls = [], [], 0
    for _ in range(epochs):
        for start in range(0, len(batches), accumulation):
            window = batches[start : start + accumulation]
            evaluations = []

            def closure(window=window, evaluations=evaluations):
                nonlocal calls
                optimizer.zero_grad()
                found = []
                for inputs, targets in window:
                    loss = nn.functional.mse_loss(model(inputs), targets)
                    (loss / len(window)).backward()
                    found.append(loss.detach())
                    calls += 1
                norm = nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
                evaluations.append((found, norm))
                return torch.stack(found).mean()

            optimizer.step(closure)
            losses += [loss.item() for loss in evaluations[0][0]]
            norms.append(evaluations[0][1].item())
    return losses, norms, calls


def same_weights(mine, theirs):
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kwargs", [FIXED, STRONG])
@pytest.mark.parametrize(("accumulation", "clip"), [(1, None), (3, None), (3, 0.5)])
def test_equals_a_loop_by_hand(lbfgs, regression, data, monkeypatch, kwargs, accumulation, clip):
    steppers = []

    class Kept(ClosureStepper):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            steppers.append(self)

    monkeypatch.setattr("accmt.setup.build.ClosureStepper", Kept)
    template = regression()
    module, other = Counting(template.model), regression().model
    other.load_state_dict(template.model.state_dict())
    training = lbfgs(kwargs, grad_accumulation_steps=accumulation, clip_grad=clip, log_every=None)
    training.fit(module, data(21))
    losses, norms, calls = by_hand(other, data(21), kwargs, accumulation=accumulation, clip=clip)
    same_weights(module.model, other)
    assert training.state.global_step == len(norms) == (4 if accumulation == 3 else 12)
    # One evaluation of a step is also its first: nothing is computed twice.
    assert len(module.calls) == calls
    if clip is not None:
        assert steppers[0].grad_norm.item() == pytest.approx(norms[-1], rel=1e-4)
    per_epoch, sizes = len(losses) // 2, [4] * 5 + [1]
    means = [decision.verdicts[0].values[0] for decision in training.decisions]
    epochs = losses[:per_epoch], losses[per_epoch:]
    wanted = [sum(loss * size for loss, size in zip(epoch, sizes, strict=True)) / 21 for epoch in epochs]
    assert means == pytest.approx(wanted, rel=1e-4)


def test_a_whole_dataset_as_one_window_reaches_the_solution(lbfgs, data):
    """Least squares of a linear model, against a direct solver."""
    dataset = data(40)
    inputs, targets = dataset.tensors
    module = Counting(nn.Linear(4, 1))
    lbfgs(STRONG, epochs=5, grad_accumulation_steps=10).fit(module, dataset)
    solution = torch.linalg.lstsq(torch.cat([inputs, torch.ones(40, 1)], 1), targets).solution.flatten()
    found = torch.cat([module.model.weight.flatten(), module.model.bias])
    torch.testing.assert_close(found.detach(), solution, rtol=0, atol=1e-4)


def test_batches_are_counted_once(lbfgs, regression, data):
    module = Counting(regression().model)
    lbfgs(FIXED, epochs=1, grad_accumulation_steps=2).fit(module, data(20))
    places = sorted({call[:3] for call in module.calls})
    assert places == [(0, 0, False), (0, 1, False), (1, 2, False), (1, 3, False), (2, 4, True)]
    assert len(module.calls) == (2 + 2 + 1) * FIXED["max_iter"]


def test_one_iteration_is_one_evaluation(lbfgs, regression, data):
    module = Counting(regression().model)
    lbfgs({"lr": 0.1, "max_iter": 1}).fit(module, data(20))
    assert len(module.calls) == 10


class Hooks(Callback):
    """Writes down the hooks of a step."""

    def __init__(self):
        super().__init__()
        self.calls = []


def _record(name):
    def hook(self, *arguments):
        self.calls.append(name)

    return hook


EVALUATION = ["before_training_step", "after_training_step", "before_backward", "after_backward"]
ONCE = [f"{when}_{what}" for what in ("optimizer_step", "scheduler_step", "zero_grad") for when in ("before", "after")]
for _name in [*EVALUATION, *ONCE]:
    setattr(Hooks, f"on_{_name}", _record(_name))


def test_hooks_of_evaluations_and_of_steps(lbfgs, regression, data):
    hooks = Hooks()
    hps = {"scheduler": "Constant"}
    lbfgs({"lr": 0.1, "max_iter": 3}, epochs=1, callback=hooks, grad_accumulation_steps=2, hps=hps).fit(
        regression(), data(8)
    )
    window = EVALUATION * 2
    assert hooks.calls == [*window, ONCE[0], *window, *window, *ONCE[1:]]


def test_gradients_are_there_before_the_optimizer_steps(lbfgs, regression, data):
    class Looking(Callback):
        norms = ()

        def on_before_optimizer_step(self, optimizer):
            norms = [parameter.grad.norm().item() for parameter in self.module.model.parameters()]
            self.norms = (*self.norms, norms)

    looking = Looking()
    lbfgs(FIXED, epochs=1, callback=looking).fit(regression(), data(8))
    assert len(looking.norms) == 2
    assert all(norm > 0 for norms in looking.norms for norm in norms)


def test_all_evaluations_of_a_step_are_of_one_function(lbfgs, regression, data):
    """With a learning rate of 0 the parameters stay, so that dropout alone could change the loss."""
    module = Counting(regression(dropout=0.5).model)
    lbfgs({"lr": 0.0, "max_iter": 4, "tolerance_change": -1.0}).fit(module, data(8))
    by_step = {}
    for step, _, _, loss in module.calls:
        by_step.setdefault(step, []).append(loss)
    assert [len(losses) for losses in by_step.values()] == [4] * 4
    assert [len(set(losses)) for losses in by_step.values()] == [1] * 4
    assert len({losses[0] for losses in by_step.values()}) == 4


def test_a_training_step_may_take_its_batch_apart(lbfgs, data):
    class Popping(Counting):
        def training_step(self, batch):
            batch["rest"].pop("note")
            return super().training_step((batch["rest"].pop("inputs"), batch.pop("targets")))

    def collate(samples):
        inputs, targets = (torch.stack(column) for column in zip(*samples, strict=True))
        return {"rest": {"inputs": inputs, "note": "text"}, "targets": targets}

    module, other = Popping(nn.Linear(4, 1)), Counting(nn.Linear(4, 1))
    other.model.load_state_dict(module.model.state_dict())
    lbfgs(FIXED, collate_fn=collate).fit(module, data(8))
    lbfgs(FIXED, "other").fit(other, data(8))
    assert module.calls == other.calls


def test_a_scheduler_steps_once_a_step(lbfgs, regression, data):
    class Rates(Callback):
        def __init__(self):
            super().__init__()
            self.rates = []

        def on_before_optimizer_step(self, optimizer):
            self.rates.append(optimizer.param_groups[0]["lr"])

    rates = Rates()
    hps = {"scheduler": {"type": "LinearWithWarmup", "num_warmup_steps": 2}}
    lbfgs({"lr": 1.0, "max_iter": 3}, callback=rates, hps=hps).fit(regression(), data(12))
    assert rates.rates == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("at", [0, 5])
def test_an_evaluation_that_runs_out_of_memory_is_made_once_more(lbfgs, regression, data, at):
    class Tight(Counting):
        failed = False

        def training_step(self, batch):
            if len(self.calls) == at and not self.failed:
                self.failed = True
                torch.rand(3)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().training_step(batch)

    module, other = Tight(regression(dropout=0.5).model), Counting(regression(dropout=0.5).model)
    other.model.load_state_dict(module.model.state_dict())
    for path, trained in (("tight", module), ("other", other)):
        torch.manual_seed(1)
        lbfgs(FIXED, path, grad_accumulation_steps=2).fit(trained, data(16))
    assert module.failed
    same_weights(module.model, other.model)


class Sharpness(torch.optim.Optimizer):
    """Takes the gradient of a place nearby (Foret et al., https://arxiv.org/abs/2010.01412)."""

    def __init__(self, params, lr=0.1, rho=0.05):
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure):
        closure()
        [group] = self.param_groups
        steps = [group["rho"] * parameter.grad.sign() for parameter in group["params"]]
        for parameter, step in zip(group["params"], steps, strict=True):
            parameter += step
        loss = closure()
        for parameter, step in zip(group["params"], steps, strict=True):
            parameter -= step
            parameter -= group["lr"] * parameter.grad
        return loss


def test_another_optimizer_that_needs_a_closure(lbfgs, data):
    module, model = Counting(nn.Linear(4, 1)), nn.Linear(4, 1)
    model.load_state_dict(module.model.state_dict())

    class Enabling(Sharpness):
        def step(self, closure):
            return super().step(torch.enable_grad()(closure))

    lbfgs({}, hps={"optimizer": Sharpness}, grad_accumulation_steps=2).fit(module, data(16))
    by_hand(model, data(16), {}, accumulation=2, make=Enabling)
    same_weights(module.model, model)


def test_which_optimizers_need_a_closure():
    parameters = [nn.Parameter(torch.zeros(1))]
    known = [getattr(torch.optim, name) for name in torch.optim.__all__ if name not in ("Optimizer", "Muon")]
    assert [kind.__name__ for kind in known if isinstance(kind, type) and needs_closure(kind(parameters))] == ["LBFGS"]
    assert needs_closure(Sharpness(parameters))


def test_a_module_that_steps_by_itself_is_refused(lbfgs, data):
    class Own(ExtendedAcceleratorModule):
        def __init__(self):
            self.model = nn.Linear(4, 1)

        def training_step(self, batch):
            raise AssertionError

    training = lbfgs(FIXED)
    with pytest.raises(ConfigError) as raised:
        training.fit(Own(), data(8))
    assert str(raised.value) == (
        "1 mistake in fit(...):\n  optimizer: LBFGS evaluates the loss several times a step, and Own makes its "
        "optimizer steps itself: use another optimizer"
    )
    assert not training.model_path.exists()


@pytest.mark.parametrize(
    ("accelerator", "said"),
    [
        (
            {"scaler": object(), "distributed_type": DistributedType.NO},
            "LBFGS evaluates the loss several times a step, which the scaled losses of fp16 do not allow: give "
            'mixed_precision="bf16", or "no"',
        ),
        (
            {"scaler": None, "distributed_type": DistributedType.FSDP},
            "LBFGS evaluates the loss several times a step with all parameters, which FSDP shards: launch without "
            "it, or use another optimizer",
        ),
        ({"scaler": None, "distributed_type": DistributedType.MULTI_GPU}, None),
        ({"scaler": None, "distributed_type": DistributedType.NO}, None),
    ],
)
def test_where_it_cannot_work(regression, accelerator, said):
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.zeros(1))])
    assert closure_problem(optimizer, regression(), SimpleNamespace(**accelerator)) == said
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    assert closure_problem(other, regression(), SimpleNamespace(**accelerator)) is None


SCRIPT = """
import json, os, sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Trainer, set_seed

torch.set_num_threads(1)
folder, batch_size, safe_mode = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])


class Module(AcceleratorModule):
    def __init__(self):
        self.model, self.calls = nn.Linear(4, 1).double(), 0

    def training_step(self, batch):
        self.calls += 1
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


set_seed(0)
module = Module()
inputs = torch.randn(32, 4, dtype=torch.float64)
targets = inputs.sum(1, keepdim=True).sin()
kwargs = {"lr": 1.0, "max_iter": 5, "line_search_fn": "strong_wolfe"}
hps = {"epochs": 2, "batch_size": batch_size, "optimizer": {"type": "LBFGS", **kwargs}}
trainer = Trainer(hps, folder / "model", clip_grad=None, shuffle_train=False, dataloader_num_workers=0,
                  safe_mode=safe_mode, disable_model_saving=True, checkpoint_every=None)
trainer.fit(module, TensorDataset(inputs, targets))
weights = torch.cat([parameter.flatten() for parameter in module.model.parameters()]).tolist()
outcome = {"weights": weights, "calls": module.calls, "losses": [d.verdicts[0].values[0] for d in trainer.decisions]}
(folder / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(outcome))
"""


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("safe_mode", [True, False])
def test_two_processes_are_one_with_twice_the_batch(tmp_path, safe_mode):
    outcomes = {}
    for processes, batch_size in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch(
            SCRIPT, folder, batch_size, json.dumps(safe_mode), processes=processes if processes > 1 else None
        ).check()
        outcomes[processes] = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    [one], [first, second] = outcomes[1], outcomes[2]
    assert first == second
    assert first["calls"] == one["calls"]
    for key in ("losses", "weights"):
        torch.testing.assert_close(torch.tensor(first[key]), torch.tensor(one[key]), rtol=1e-6, atol=1e-8)
