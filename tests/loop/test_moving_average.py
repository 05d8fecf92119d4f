"""`Trainer(ema_decay=...)`: evaluations and saved models use a moving average of the weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

from accmt import (
    AcceleratorModule,
    Callback,
    ConfigError,
    ExtendedAcceleratorModule,
    HyperParameters,
    Trainer,
    load_best,
)
from accmt.checkpoint.weights import read_beside, read_weights
from accmt.loop import step

DECAY = 0.9


def data() -> TensorDataset:
    inputs = torch.linspace(-1, 1, 24)[:, None]
    return TensorDataset(inputs, torch.sin(3 * inputs))


class Fitting(AcceleratorModule):
    """A model with batch normalization, a frozen part, and a head beside it."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4), nn.Dropout(0.1))
        self.model[0].bias.requires_grad_(False)
        self.head = nn.Linear(4, 1)

    def predicted(self, inputs):
        return self.head(self.model(inputs))

    def training_step(self, batch):
        return nn.functional.mse_loss(self.predicted(batch[0]), batch[1])

    def validation_step(self, key, batch):
        return {"loss": nn.functional.mse_loss(self.predicted(batch[0]), batch[1])}

    def get_optimizer(self):
        trained = [each for each in self.model.parameters() if each.requires_grad]
        return torch.optim.Adam([*trained, *self.head.parameters()], lr=0.05)


class ByHand(Callback):
    """The average by torch alone, and its loss at each evaluation."""

    def __init__(self, module: Fitting, decay: float = DECAY) -> None:
        self.networks = nn.ModuleList([module.model, module.head])
        self.average = AveragedModel(self.networks, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.losses: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_before_zero_grad(self, optimizer):
        self.average.update_parameters(self.networks)

    def on_evaluation_start(self):
        model, head = self.average.module
        is_training = model.training
        model.eval()
        with torch.no_grad():
            inputs, targets = data().tensors
            self.losses.append(nn.functional.mse_loss(head(model(inputs)), targets).item())
        model.train(is_training)
        self.weights = [value.clone() for value in self.networks.parameters()]

    def on_evaluation_end(self):
        assert all(map(torch.equal, self.weights, self.networks.parameters()))


def train(folder: Path, module: AcceleratorModule, *, epochs: int = 3, decay: float | None = DECAY, **arguments):
    arguments = {"quiet": True, "dataloader_num_workers": 0, "seed": 7} | arguments
    hps = HyperParameters(epochs=epochs, batch_size=(8, 24))
    trainer = Trainer(hps, folder, ema_decay=decay, **arguments)
    trainer.register_model_saving("max(step)", name="newest")
    history = trainer.fit(module, data(), data())
    return [observation.values["0"]["valid_loss"] for observation in history.observations]


def equal(some, others) -> bool:
    return some.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in some.items())


@pytest.mark.proves("Trainer(ema_decay)")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_evaluations_and_saved_models_use_the_average_that_torch_computes(tmp_path, accumulation):
    module = Fitting()
    hand = ByHand(module)
    assert train(tmp_path, module, callback=hand, grad_accumulation_steps=accumulation) == hand.losses
    averaged, head = hand.average.module
    assert equal(read_weights(tmp_path / "newest"), averaged.state_dict())
    assert equal(read_beside(tmp_path / "newest"), {f"head.{name}": one for name, one in head.state_dict().items()})
    assert not torch.equal(module.model[0].weight, averaged[0].weight)  # the module keeps the trained weights
    other = Fitting()
    load_best(tmp_path, other)
    assert equal(other.model.state_dict(), averaged.state_dict())


def test_training_itself_is_not_changed(tmp_path):
    one, other = Fitting(), Fitting()
    train(tmp_path / "one", one)
    train(tmp_path / "other", other, decay=None)
    assert equal(one.model.state_dict(), other.model.state_dict())


class Killing(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_training_step(self, batch):
        if self.state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_resumed_average_is_exact(tmp_path, step):
    whole, cut, resumed = Fitting(), Fitting(), Fitting()
    expected = train(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", cut, checkpoint_every="1 step", callback=Killing(step))
    assert train(tmp_path / "cut", resumed, checkpoint_every="1 step") == expected
    assert equal(whole.model.state_dict(), resumed.model.state_dict())
    assert equal(read_weights(tmp_path / "whole/newest"), read_weights(tmp_path / "cut/newest"))
    ends = [load_file(tmp_path / one / "checkpoints" / name / "optimizer.safetensors") for one, name in ENDS]
    assert equal(*ends)
    assert "ema.averages.head.weight" in ends[0]
    assert "ema.averages.model.0.bias" not in ends[0]  # frozen


ENDS = (("whole", "checkpoint-0003-step-9"), ("cut", "checkpoint-0009-step-9"))


def test_decays_may_change_and_averages_begin_and_end_at_a_resume(tmp_path, capsys):
    said = []
    for epochs, decay in enumerate([None, 0.9, 0.5, None], start=1):
        module = Fitting()
        module.model[4].p = 0.0
        hand = ByHand(module, decay or 0.9)
        seen = train(tmp_path, module, epochs=epochs, decay=decay, quiet=False, callback=hand)
        said.append([line for line in capsys.readouterr().out.splitlines() if "ema_decay" in line or "average" in line])
        if decay == 0.9:  # the average by hand starts with the first step after the resume, too
            assert seen[-1] == hand.losses[-1]
    assert said == [
        [],
        [
            "note: ema_decay was None and is 0.9",
            "note: the checkpoint has no moving average of the weights: it starts from the weights there",
        ],
        ["note: ema_decay was 0.9 and is 0.5"],
        ["note: ema_decay was 0.5 and is None", "note: the moving average of the weights in the checkpoint is dropped"],
    ]


def test_weights_that_are_trained_later_are_averaged_from_then_on(tmp_path):
    class Unfreezing(Callback):
        def on_epoch_start(self):
            self.module.model[3].bias.requires_grad_(self.state.epoch > 0)
            self.module.model[3].weight.requires_grad_(self.state.epoch == 0)

    module = Fitting()
    module.get_optimizer = lambda: torch.optim.SGD([*module.model.parameters(), *module.head.parameters()], lr=0.1)
    train(tmp_path, module, callback=Unfreezing())
    saved = read_weights(tmp_path / "newest")
    state = module.model.state_dict()
    moving = [name for name in state if not torch.equal(saved[name], state[name])]
    assert moving == ["0.weight", "1.weight", "1.bias", "3.weight", "3.bias"]


def test_averages_of_16_bit_weights_move(tmp_path):
    module = Fitting()
    module.model.bfloat16()
    module.training_step = lambda batch: (
        module.model(batch[0].bfloat16()).float().square().mean()
        + 0 * sum(one.sum() for one in module.head.parameters())
    )
    module.validation_step = lambda key, batch: {"loss": torch.zeros(())}
    train(tmp_path, module, decay=0.999, epochs=1)
    [file] = tmp_path.glob("checkpoints/*/optimizer.safetensors")
    average = load_file(file)["ema.averages.model.3.weight"]
    assert average.dtype == torch.float32
    assert not torch.equal(average, average.bfloat16().float())


@pytest.mark.parametrize("decay", [0, 1, -0.5, "0.9", True])
def test_a_decay_is_between_0_and_1(tmp_path, decay):
    with pytest.raises(ConfigError) as caught:
        Trainer({}, tmp_path, ema_decay=decay)
    kind = type(decay).__name__
    text = f"ema_decay: must be a number between 0 and 1, or None, not {decay!r} ({kind})"
    assert str(caught.value) == f"1 mistake in Trainer(...):\n  {text}"


class Manual(ExtendedAcceleratorModule, Fitting):
    def training_step(self, batch):
        raise AssertionError


def test_steps_of_the_module_itself_are_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, Manual())
    assert str(caught.value) == (
        "1 mistake in Trainer(...):\n"
        "  ema_decay: Manual makes its optimizer steps itself, which are not averaged: leave it out"
    )


TWO = """
import sys
sys.path.insert(0, sys.argv[2])
import hashlib
from accelerate import PartialState
import test_moving_average as tests

module = tests.Fitting()
hand = tests.ByHand(module)
seen = tests.train(tests.Path(sys.argv[1]), module, epochs=2, callback=hand)
saved = tests.read_weights(tests.Path(sys.argv[1]) / "newest")
print("average", tests.equal(saved, hand.average.module[0].state_dict()) or PartialState().process_index)
"""


@pytest.mark.xdist_group("processes")
def test_two_processes_average_alike(tmp_path):
    ran = launch(TWO, tmp_path, Path(__file__).parent, processes=2).check()
    assert sorted(line for line in ran.stdout.splitlines() if "warning" not in line) == ["average 1", "average True"]


SHARDED = """
import os, sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
from accelerate import PartialState
from accelerate.utils import DistributedType

os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # Accelerate shards on GPUs alone
from accmt import AcceleratorModule, ConfigError, Trainer

class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(2, 1)

    def training_step(self, batch):
        os._exit(7)

    def validation_step(self, key, batch):
        os._exit(7)

samples = TensorDataset(torch.zeros(8, 2))
for number, (rule, decay) in enumerate((("valid_loss keep 3 average", None), ("valid_loss", 0.9))):
    hps, more = {"batch_size": 2}, {"dataloader_num_workers": 0, "destroy_after_training": False}
    trainer = Trainer(hps, sys.argv[1] + str(number), ema_decay=decay, **more)
    trainer.register_model_saving(rule)
    try:
        trainer.fit(Module(), samples, samples)
    except ConfigError as error:
        print(error)
"""


@pytest.mark.xdist_group("processes")
def test_a_sharded_model_is_not_averaged(tmp_path):
    ran = launch(SHARDED, tmp_path / "model", processes=2).check()
    assert sorted(set(ran.stdout.splitlines())) == [
        "  ema_decay: DeepSpeed and FSDP hold the weights in parts, which are not averaged: leave it out",
        "  valid_loss keep 3 average: a model that FSDP or DeepSpeed holds cannot be evaluated with averaged weights: "
        "leave 'average' out",
        "1 mistake in Trainer(...):",
        "1 mistake in register_model_saving(...):",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_model_is_averaged_by_its_plain_names(tmp_path):
    module = Fitting()
    hand = ByHand(module)
    options = {"compile": True, "compile_kwargs": {"backend": "eager"}}
    assert train(tmp_path, module, epochs=1, callback=hand, **options) == hand.losses
    assert equal(read_weights(tmp_path / "newest"), hand.average.module[0].state_dict())


def test_steps_of_lbfgs_are_averaged(tmp_path):
    module = Fitting()
    module.get_optimizer = lambda: torch.optim.LBFGS(
        [*module.model.parameters(), *module.head.parameters()], max_iter=2
    )
    hand = ByHand(module)
    assert train(tmp_path, module, epochs=1, callback=hand, clip_grad=None) == hand.losses


def test_steps_that_the_optimizer_skips_are_not_averaged(tmp_path, monkeypatch):
    """As with fp16, whose gradients may overflow: only a GPU has it."""
    made, updates = [], step.updates_of

    def skipping(*given):
        backend = updates(*given)

        def make():
            made.append(len(made) == 3)
            return None if made[-1] else backend.step()

        return replace(backend, step=make, was_skipped=lambda: made[-1])

    class Skipping(ByHand):
        def on_before_zero_grad(self, optimizer):
            if not made[-1]:
                super().on_before_zero_grad(optimizer)

    monkeypatch.setattr(step, "updates_of", skipping)
    module = Fitting()
    hand = Skipping(module)
    assert train(tmp_path, module, callback=hand) == hand.losses
    assert made.count(True) == 1
