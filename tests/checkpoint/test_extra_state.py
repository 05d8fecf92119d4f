"""What a checkpoint holds besides model and optimizer, and what is trained: each course is cut and continued, and ends
as the undisturbed one."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, Trainer, load_saving, set_seed
from accmt.hyperparameters import ConfigError

INPUTS = TensorDataset(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)))


class Cut(Exception):
    pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, inputs):
        return self.b(torch.tanh(self.n(self.a(inputs)))) * self.scale


class Module(AcceleratorModule):
    def __init__(self):
        self.model = Net()

    def training_step(self, batch):
        return (self.model(batch[0]) - 1).pow(2).mean()


class Decaying(Module):
    """A buffer that is not persistent changes."""

    def training_step(self, batch):
        self.model.scale *= 0.9
        return super().training_step(batch)


class Headed(Module):
    """Networks and parameters beside the model: an attribute, in a list, and a parameter alone."""

    def __init__(self):
        super().__init__()
        self.head, self.more = nn.Linear(2, 2), [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))]
        self.temperature = nn.Parameter(torch.ones(()))

    def get_optimizer(self):
        beside = [*self.head.parameters(), *self.more[0].parameters(), self.temperature]
        return torch.optim.AdamW([*self.model.parameters(), *beside], lr=0.05)

    def training_step(self, batch):
        return (self.more[0](self.head(self.model(batch[0]))) * self.temperature - 1).pow(2).mean()


class Mean:
    """An object with a state."""

    def __init__(self):
        self.value = torch.zeros(())

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Remembering(Module):
    """A state of its own, and an attribute with one."""

    def __init__(self):
        super().__init__()
        self.mean, self.count = Mean(), 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    def training_step(self, batch):
        self.count += 1
        self.mean.value = 0.9 * self.mean.value + 0.1
        return super().training_step(batch) * (1 + self.mean.value) / self.count


class Unfreezing(Module):
    def __init__(self):
        super().__init__()
        self.freeze(self.model.a)


class Doing(Callback):
    """Does something at the start of the second epoch."""

    def __init__(self, action=None):
        self.action, self.optimizer = action, None

    def on_before_optimizer_step(self, optimizer):
        self.optimizer = optimizer

    def on_epoch_start(self):
        if self.action is not None and self.state.epoch == 1:
            self.action(self.module, self.optimizer)


class Counting(Callback):
    """The rate falls by a counter of the callback."""

    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    def on_before_optimizer_step(self, optimizer):
        self.count += 1
        optimizer.param_groups[0]["lr"] = 0.1 / self.count


def add_group(module, optimizer):
    module.unfreeze(module.model.a)
    optimizer.add_param_group({"params": list(module.model.a.parameters()), "lr": 0.01})


CASES = {
    "buffer": (Decaying, None),
    "beside": (Headed, None),
    "state": (Remembering, None),
    "frozen": (Module, lambda module, _: module.freeze(module.model.a)),
    "evaluating": (Module, lambda module, _: module.model.n.eval()),
    "unfrozen": (Unfreezing, lambda module, _: module.unfreeze(module.model.a)),
    "group": (Unfreezing, add_group),
    "callback": (Module, Counting),
}


@pytest.fixture
def fit(tmp_path):
    """(path, kind of module, action, step at which it is cut) -> the module that was trained."""

    def run(path, kind, action=None, cut=None, **arguments):
        set_seed(0)
        module = kind()

        class Cutting(Callback):
            def on_before_training_step(self, batch):
                if self.state.global_step == cut:
                    raise Cut

        hps = {"epochs": 3, "batch_size": 4, "optimizer": {"type": "AdamW", "lr": 0.05}}
        hps |= arguments.pop("hps", {})
        callback = action if isinstance(action, Callback) else Counting() if action is Counting else Doing(action)
        arguments = {"checkpoint_every": "3 steps", "dataloader_num_workers": 0, "quiet": True, **arguments}
        trainer = Trainer(hps, tmp_path / path, callback=[callback, Cutting()], **arguments)
        try:
            trainer.fit(module, INPUTS)
        except Cut:
            assert cut is not None
        return module

    return run


def tensors(module):
    named = dict(module.model.state_dict())
    for way, part in vars(module).items():
        for number, one in enumerate(part if isinstance(part, list) else [part]):
            if isinstance(one, nn.Module) and way != "model":
                named |= {f"{way}.{number}.{name}": value for name, value in one.state_dict().items()}
    return named


@pytest.mark.parametrize("case", CASES)
def test_a_continued_training_is_the_undisturbed_one(fit, case):
    kind, action = CASES[case]
    whole = tensors(fit("whole", kind, action))
    fit("cut", kind, action, cut=7)
    continued = tensors(fit("cut", kind, action))
    assert whole.keys() == continued.keys()
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())


def test_what_is_unfrozen_moves_in_its_group(fit):
    hps = {"optimizer": {"type": "AdamW", "lr": 0.05, "no_decay": ["bias"], "weight_decay": 0.5}}
    held = []

    def unfreeze(module, optimizer):
        held.append(optimizer)
        module.unfreeze(module.model.a)

    set_seed(0)
    before = Unfreezing().model.a.weight.clone()
    module = fit("model", Unfreezing, unfreeze, hps=hps)
    assert not torch.equal(before, module.model.a.weight)
    assert [len(group["params"]) for group in held[0].param_groups] == [3, 3]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LBFGS"])
def test_a_frozen_layer_does_not_move(fit, set_to_none, optimizer):
    kept = []

    def freeze(module, _):
        module.freeze(module.model.a)
        kept.append(module.model.a.weight.clone())

    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1} if optimizer == "SGD" else {"lr": 0.05}
    module = fit("model", Module, freeze, hps={"optimizer": {"type": optimizer, **options}}, set_to_none=set_to_none)
    assert torch.equal(kept[0], module.model.a.weight)


def test_an_added_group_is_clipped_and_scheduled(fit):
    norms, rates = [], []

    class Loud(Unfreezing):
        def training_step(self, batch):
            return 1000 * super().training_step(batch)

    class Adding(Doing):
        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            gradients = [one.grad for one in self.module.model.parameters() if one.grad is not None]
            norms.append(float(nn.utils.get_total_norm(gradients)))
            rates.append([group["lr"] for group in optimizer.param_groups])

    fit("model", Loud, Adding(add_group), hps={"scheduler": "LinearLR"}, clip_grad=0.5)
    assert len(norms) == 12
    assert max(norms) <= 0.5 + 1e-5
    assert rates[3] == [pytest.approx(0.05 * (1 / 3 + 2 / 3 * 3 / 5))]
    assert rates[-1] == [pytest.approx(0.05), pytest.approx(0.01, rel=2)]


def test_networks_beside_the_model_are_saved_and_loaded(fit, tmp_path):
    module = fit("model", Headed)
    folder = tmp_path / "model" / "best_train_loss"
    assert set(torch.load(folder / "pytorch_model.bin", weights_only=True)) == set(module.model.state_dict())
    other = Headed()
    load_saving(folder, other)
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(module).items())
    assert torch.equal(module.temperature, other.temperature)
    with pytest.warns(UserWarning, match="holds head, more, temperature too"):
        load_saving(folder, Net())
    other.head = nn.Linear(2, 3)
    with pytest.raises(RuntimeError, match=r"head.weight has the shape \(2, 2\) in the saved model"):
        load_saving(folder, other)


class Lost(Module):
    def __init__(self):
        super().__init__()
        self.head = {"inner": nn.Linear(2, 2)}

    def training_step(self, batch):
        return (self.head["inner"](self.model(batch[0])) - 1).pow(2).mean()


class Left(Lost):
    def get_optimizer(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", [Lost, Left])
def test_what_nobody_would_train_is_an_error(fit, kind):
    with pytest.raises(ConfigError, match=r"self.head requires gradients.*head.inner.weight.*get_optimizer, or freeze"):
        fit("model", kind)


class Late(Callback):
    """Adds a group after the forward pass, when the scheduler has yet to step."""

    def on_before_optimizer_step(self, optimizer):
        if self.state.global_step == 5:
            optimizer.add_param_group({"params": list(self.module.model.a.parameters()), "lr": 0.01})


class Bare(Module):
    def get_optimizer(self):
        return torch.optim.SGD(self.model.b.parameters(), lr=0.1)


def test_a_group_that_is_added_before_the_scheduler_steps(fit):
    hps = {"scheduler": {"type": "LinearWithWarmup", "num_warmup_steps": 1}}
    whole = fit("whole", Bare, Late(), hps=hps)
    fit("cut", Bare, Late(), cut=7, hps=hps)
    again = fit("cut", Bare, Late(), hps=hps)
    assert all(map(torch.equal, again.model.state_dict().values(), whole.model.state_dict().values()))


class Parted(Module):
    """What is left out of the optimizer on purpose: a part of the model, and what the module trains by itself."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.own = [torch.optim.SGD(self.head.parameters(), lr=0.1)]

    def get_optimizer(self):
        return torch.optim.SGD(self.model.b.parameters(), lr=0.1)

    def training_step(self, batch):
        self.own[0].step()
        self.own[0].zero_grad()
        return (self.head(self.model(batch[0])) - 1).pow(2).mean()


def test_what_another_optimizer_holds_and_parts_of_the_model_may_be_left_out(fit):
    module = Parted()
    before = copy.deepcopy((module.head.weight, module.model.a.weight, module.model.b.weight))
    fit("model", lambda: module)
    after = module.head.weight, module.model.a.weight, module.model.b.weight
    assert list(map(torch.equal, before, after)) == [False, True, False]


class Half(Callback):
    def state_dict(self):
        return {}


class Setting(Counting):
    def state_dict(self):
        return {"seen": {1, 2}}


BUFFERS = {
    "sparse": torch.eye(3).to_sparse(),
    "complex128": torch.ones(2, dtype=torch.complex128),
    "expanded": torch.ones(1).expand(4),
    "meta": torch.ones(2, device="meta"),
    "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", BUFFERS)
def test_a_buffer_that_cannot_be_written_is_found_before_the_first_step(trainer, kind):
    module = Module()
    module.model.register_buffer("odd", copy.copy(BUFFERS[kind]))
    training = trainer()
    with pytest.raises(ConfigError, match="model: 'odd' is "):
        training.fit(module, INPUTS)
    assert not training.model_path.exists()


def test_buffers_of_every_other_kind_are_continued(fit):
    class Odd(Module):
        def __init__(self):
            super().__init__()
            shared = torch.arange(4.0)
            for name, value in {
                "empty": torch.empty(0),
                "flag": torch.tensor([True, False]),
                "eighth": torch.ones(3).to(torch.float8_e4m3fn),
                "first": shared[:2],
                "second": shared[2:],
                "turned": torch.ones(2, 3).T,
            }.items():
                self.model.register_buffer(name, value)

    whole = tensors(fit("whole", Odd))
    fit("cut", Odd, cut=6)
    continued = tensors(fit("cut", Odd))
    assert all(torch.equal(value.float(), continued[name].float()) for name, value in whole.items())


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (Half, "Half: has state_dict and no load_state_dict"),
        (Setting, "its state cannot be written to a checkpoint: set"),
    ],
)
def test_a_state_that_cannot_be_written_is_found_before_the_first_step(trainer, callback, text):
    with pytest.raises(ConfigError, match=text):
        trainer(callback=callback()).fit(Module(), INPUTS)


class Carrying(Callback):
    total, last = 0, None

    def __init__(self):
        self.seen, self.best, self.shown = [], 0.0, 0

    def on_before_training_step(self, batch):
        self.last = batch
        self.note(self.last)

    def note(self, batch):
        self.total += 1

    def on_epoch_end(self):
        self.seen.append(self.state.epoch)
        self.best = max(self.best, 1.0)

    def on_fit_end(self):
        self.shown += 1


def test_state_that_nothing_saves_is_named_once(trainer, capsys):
    class Averaging(Module):
        mean = 0.0

        def training_step(self, batch):
            self.mean = 0.9 * self.mean + 0.1
            self.output = self.model(batch[0])
            return (self.output - 1).pow(2).mean()

    trainer(callback=[Carrying(), Counting(), Doing()], epochs=1).fit(Averaging(), INPUTS)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("warning:") == 1
    named = "Averaging.mean, Carrying.seen, Carrying.best, Carrying.total, Doing.optimizer."
    assert f"warning: changed during the training, but not saved in checkpoints: {named}" in shown


def test_names_do_not_depend_on_a_wrapper(trainer, tmp_path):
    class Wrapped(Module):
        def __init__(self, wrap):
            self.model = wrap(nn.Sequential(nn.Linear(3, 2), wrap(nn.Linear(2, 2))))

    compiled = lambda model: torch.compile(model, backend="eager")  # noqa: E731
    trainer(epochs=1).fit(Wrapped(compiled), INPUTS)
    plain = Wrapped(lambda model: model)
    weights = torch.load(tmp_path / "model" / "best_train_loss" / "pytorch_model.bin", weights_only=True)
    assert list(weights) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    for other in (plain, Wrapped(compiled), Wrapped(nn.DataParallel)):
        load_saving(tmp_path / "model" / "best_train_loss", other)
        assert torch.equal(next(other.model.parameters()), weights["0.weight"])
    trainer(epochs=2).fit(plain, INPUTS)
    assert plain.state.global_step == 8


def test_what_the_script_freezes_now_is_the_scripts(fit, capsys):
    fit("model", Module, cut=6)
    module = fit("model", Unfreezing, quiet=False)
    assert not module.model.a.weight.requires_grad
    shown = " ".join(capsys.readouterr().out.split())
    assert "model.a.bias was trained at the start and is frozen" in shown
    assert "the optimizer no longer holds model.a.bias, model.a.weight" in shown
