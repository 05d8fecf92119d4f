"""The methods of a module that handle all of its networks together, which the trainer does not use."""

import copy

import pytest
import torch
from torch import nn

from accmt import AcceleratorModule, ExtendedAcceleratorModule


class Several(AcceleratorModule):
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.heads = [nn.Linear(2, 1), nn.Dropout(0.5)]
        self.scale = nn.Parameter(torch.ones(1))
        self.shared = self.model[0]
        self.teacher = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))


NAMES = {
    *(f"model.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")),
    *(f"model.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
    *("heads.0.weight", "heads.0.bias", "scale"),
}


@pytest.mark.proves("AcceleratorModule.train", "AcceleratorModule.train(mode)", "AcceleratorModule.eval")
def test_train_and_eval():
    module = Several()
    parts = [*module.model.modules(), *module.heads]
    assert module.eval() is module
    assert not any(part.training for part in (*parts, *module.teacher.modules()))
    assert module.train() is module
    assert all(part.training for part in parts)
    assert not any(part.training for part in module.teacher.modules())
    assert not any(part.training for part in module.train(False).heads)


@pytest.mark.proves("AcceleratorModule.to", "AcceleratorModule.to(*)")
def test_to_moves_and_converts():
    module = Several()
    scale = module.scale
    scale.sum().backward()
    assert module.to(torch.float64) is module
    assert scale.grad.dtype is torch.float64
    tensors = [*module.parameters(), *module.teacher.parameters(), module.model[1].running_mean]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert module.model[1].num_batches_tracked.dtype is torch.int64
    assert module.scale is scale
    module.scale = None
    module.to("meta")
    tensors = [*module.parameters(), *module.teacher.parameters(), *module.model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert module.device == torch.device("meta")


@pytest.mark.proves("AcceleratorModule.parameters")
def test_parameters_are_each_once_without_the_teacher():
    module = Several()
    mine = list(module.parameters())
    assert len(mine) == len({id(one) for one in mine}) == 7
    assert {id(one) for one in mine} == {
        id(one) for one in (*module.model.parameters(), *module.heads[0].parameters(), module.scale)
    }


@pytest.mark.proves("AcceleratorModule.state_dict")
def test_a_state_dict_is_loaded():
    module, other = Several(), Several()
    state = module.state_dict()
    assert state.keys() == NAMES
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert torch.equal(state["scale"], torch.full((1,), 2.0))  # the weights themselves, as those of torch
    assert other.load_state_dict(copy.deepcopy(state)) is None
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert other.scale.requires_grad


@pytest.mark.proves("AcceleratorModule.load_state_dict", "AcceleratorModule.load_state_dict(state)")
def test_a_state_dict_that_does_not_fit_changes_nothing():
    module = Several()
    before = copy.deepcopy(module.state_dict())
    state = {name: torch.zeros_like(value) for name, value in before.items()}
    del state["model.0.weight"]
    state |= {"scale": torch.zeros(2), "head.weight": torch.zeros(1), "heads.0.bias": "text"}
    with pytest.raises(RuntimeError) as caught:
        module.load_state_dict(state)
    first, *lines = str(caught.value).splitlines()
    assert first == "the weights are not those of Several; nothing was loaded:"
    assert sorted(lines) == [
        "  head.weight is not in Several",
        "  heads.0.bias is not a tensor and must be (1,)",
        "  model.0.weight is missing",
        "  scale is (2,) and must be (1,)",
    ]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(RuntimeError, match=r"weights of the model alone: self\.model\.load_state_dict"):
        module.load_state_dict(module.model.state_dict())


def test_names_are_without_wrappers():
    module = Several()
    module.model = nn.DataParallel(module.model)
    assert module.state_dict().keys() == NAMES
    module.load_state_dict(Several().state_dict())


def test_a_module_without_a_teacher_or_buffers():
    class Bare(ExtendedAcceleratorModule):
        def __init__(self):
            self.model = nn.Linear(2, 1)

    module = Bare().to("cpu").eval()
    assert not module.model.training
    assert [*module.state_dict()] == ["model.weight", "model.bias"]


def test_names_of_a_users_module_are_its_own(trainer, data):
    """A trainer uses none of them, whatever they are."""
    seen = []

    def refuse(self, *arguments):
        raise AssertionError("called by the trainer")

    class Own(AcceleratorModule):
        train = eval = to = parameters = refuse

        def __init__(self):
            self.model = nn.Linear(4, 1)
            self.teacher = nn.Linear(4, 1)
            self.head = nn.Linear(1, 1).requires_grad_(False)
            self.train = {"data": 1}
            self.count = 0

        def training_step(self, batch):
            self.count += 1
            return self.model(batch[0]).square().mean()

        def validation_step(self, key, batch):
            return self.head(self.model(batch[0])).square().mean()

        def predict_step(self, batch):
            return self.model(batch[0])

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            seen.append(state)

    for epochs in (1, 2):
        training = trainer(epochs=epochs, restore_best=True)
        training.fit(Own(), data(8), data(4))
    assert seen == [{"count": 2}]  # the state of the module itself, as before
    training.evaluate(Own(), data(4))
    assert len(training.predict(Own(), data(4))) == 4


def test_one_of_the_two_methods_is_refused(trainer, regression, data):
    class Half(regression):
        def state_dict(self):
            return {}

    with pytest.raises(ValueError, match="Half: has state_dict and no load_state_dict: a checkpoint needs both"):
        trainer().fit(Half(), data(8))


def test_a_module_without_own_state_is_no_state_of_a_checkpoint(trainer, regression, data):
    """Nor is one in an attribute, whose networks are found as ever."""

    class Outer(regression):
        def __init__(self):
            super().__init__()
            self.inner = regression()
            self.inner.model.requires_grad_(False)

    module = Outer()
    trainer(epochs=1).fit(module, data(8))
    with torch.no_grad():
        module.inner.model[0].weight.zero_()
    changed = Outer()
    training = trainer(epochs=2)
    changed.inner.model[0].weight.data.fill_(7)
    training.fit(changed, data(8))
    assert not torch.equal(changed.inner.model[0].weight, torch.full((8, 4), 7.0))  # restored from the checkpoint
    assert {name.split(".")[0] for name in changed.state_dict()} == {"model", "inner"}


@pytest.mark.parametrize("is_first", [True, False])
def test_methods_of_torch_take_precedence(is_first):
    """Of a class that is a torch.nn.Module as well, whichever base class is named first."""
    bases = (AcceleratorModule, nn.Module) if is_first else (nn.Module, AcceleratorModule)

    class Mixed(*bases):
        def __init__(self):
            nn.Module.__init__(self)
            self.model = nn.Linear(2, 1)
            self.head = nn.Linear(1, 1)

    module = nn.Sequential(Mixed())
    assert [*module.state_dict()] == ["0.model.weight", "0.model.bias", "0.head.weight", "0.head.bias"]
    assert not module.eval()[0].head.training
    assert len([*module.parameters()]) == 4
    assert module.to(torch.float64)[0].head.weight.dtype is torch.float64
    module.load_state_dict(module.state_dict())
