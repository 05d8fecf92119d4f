"""A training imports nothing that takes long and that it does not need."""

import subprocess
import sys

import torch
from torch import nn

from accmt import _compat as compat
from accmt.hyperparameters import HyperParameters

TRAINING = """
import sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
from accmt import Trainer

data = TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
for optimizer in ("AdamW", "SGD", "RMSprop"):
    hps = {"epochs": 2, "batch_size": 4, "optimizer": {"type": optimizer, "lr": 0.1}, "scheduler": "Constant"}
    trainer = Trainer(hps, optimizer, resume=False, quiet=True)
    trainer.fit(nn.Linear(2, 1), data, data, loss_fn=nn.MSELoss())
print([name for name in ("torch._dynamo", "torch.distributed.tensor", "sympy", "pydantic") if name in sys.modules])
"""


def test_a_training_without_what_only_compiling_and_sharding_need(tmp_path):
    ran = subprocess.run([sys.executable, "-c", TRAINING], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")


def steps(count, put_off, monkeypatch, **options):
    """The weights after some steps, with `torch._dynamo` imported or as if it were not."""
    torch.manual_seed(0)
    model, seen = nn.Linear(3, 2), []
    if put_off:
        monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    optimizer = HyperParameters(1, None, 1, "AdamW", {"lr": 0.1, **options}).build_optimizer(model.named_parameters())
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    for _ in range(count):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = optimizer.state_dict()
    monkeypatch.undo()
    assert seen == ["before", "after"] * count
    return [parameter.detach() for parameter in model.parameters()], state["state"][0]["exp_avg"]


def test_optimizers_step_as_torch_makes_them(monkeypatch):
    import torch._dynamo

    for options in ({}, {"foreach": True}, {"fused": True}, {"differentiable": False}):
        torch.testing.assert_close(
            steps(3, True, monkeypatch, **options), steps(3, False, monkeypatch, **options), rtol=0, atol=0
        )


def test_what_has_imported_dynamo_gets_what_torch_does(monkeypatch):
    import torch._dynamo

    function = torch.optim.Optimizer.zero_grad.__wrapped__
    monkeypatch.delattr(function, "__dynamo_disable", raising=False)
    compat.put_off_dynamo()
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    optimizer.zero_grad()
    assert function.__dynamo_disable.__module__.startswith("torch._dynamo")


def test_distributed_tensors_are_found_once_they_are_imported(monkeypatch):
    from accelerate import accelerator

    asked = []
    monkeypatch.setattr(accelerator, "model_has_dtensor", lambda model: asked.append(model) or True)
    with compat.dtensors_looked_for_if_imported():
        monkeypatch.setitem(sys.modules, "torch.distributed.tensor", None)
        assert accelerator.model_has_dtensor("with")
        monkeypatch.delitem(sys.modules, "torch.distributed.tensor")
        assert not accelerator.model_has_dtensor("without")
    assert asked == ["with"]
