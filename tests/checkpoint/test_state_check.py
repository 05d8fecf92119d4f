"""States of the optimizer and the scheduler that do not fit are refused at a resume, and nothing is restored.

The files are whole, with a manifest of their own: somebody changed a number of them on purpose, or another version
wrote them. torch would load most of these, and fail at a later step or not at all.
"""

import hashlib
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from accmt.checkpoint.checkpoints import NoCheckpoint
from accmt.checkpoint.optimizer_state import NamedOptimizer
from accmt.checkpoint.stateful import Mismatch

ADAM = {"optimizer": "AdamW", "hps": {"scheduler": "StepLR", "scheduler_kwargs": {"step_size": 2}}}


@pytest.fixture
def resume(trainer, regression, data):
    """Train an epoch, change the files of its checkpoint, and resume; return the error and the weights before."""

    def resume(change, **given):
        trainer(epochs=1, **given).fit(regression(), data(8))
        training = trainer(epochs=2, **given)
        [folder] = (training.model_path / "checkpoints").iterdir()
        change(folder)
        files = [path for path in folder.iterdir() if path.name != "MANIFEST.json"]
        contents = {path.name: path.read_bytes() for path in files}
        listed = {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        }
        (folder / "MANIFEST.json").write_text(json.dumps({"schema": 1, "files": listed}))
        module = regression()
        before = {name: value.clone() for name, value in module.model.state_dict().items()}
        with pytest.raises((Mismatch, NoCheckpoint)) as caught:
            training.fit(module, data(8))
        after = module.model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert {path.name: path.read_bytes() for path in files} == contents
        return str(caught.value)

    return resume


def tensors(change):
    """Change the tensors of the optimizer."""

    def rewrite(folder):
        path = folder / "optimizer.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path)

    return rewrite


def parts(change):
    """Change the JSON of optimizer and scheduler."""

    def rewrite(folder):
        path = folder / "trainer.json"
        content = json.loads(path.read_text())
        change(content["parts"])
        path.write_text(json.dumps(content))

    return rewrite


def entry(found, ending):
    return next(name for name in sorted(found) if name.endswith(ending))


def flat(found):
    found[entry(found, "model.0.weight.exp_avg")] = torch.zeros(3)


def long(found):
    found[entry(found, "model.0.weight.step")] = torch.zeros(2)


def first_state(states):
    return states["optimizer"]["state"]["model.0.weight"]


CHANGES = {
    "another shape": (tensors(flat), r"exp_avg of model\.0\.weight has the shape \(3,\) in the checkpoint and .* here"),
    "a longer step": (tensors(long), r"step of model\.0\.weight has the shape \(2,\) .* and the shape \(\) here"),
    "no second moment": (
        parts(lambda states: first_state(states).pop("exp_avg_sq")),
        r"exp_avg_sq of model\.0\.weight is missing in the optimizer of the checkpoint",
    ),
    "text for a moment": (
        parts(lambda states: first_state(states).update(exp_avg="x")),
        r"exp_avg of model\.0\.weight has the value 'x'",
    ),
    "a list for a state": (
        parts(lambda states: states["optimizer"]["state"].update({"model.0.weight": [1]})),
        r"optimizer\.state\.model\.0\.weight: \[1\] is not of type dict",
    ),
    "a state of nothing": (
        parts(lambda states: states["optimizer"]["state"].update(other={})),
        "the optimizer of the checkpoint has a state of other, which it does not hold",
    ),
    "a parameter twice": (
        parts(lambda states: states["optimizer"]["param_groups"].append(states["optimizer"]["param_groups"][0])),
        r"the optimizer of the checkpoint holds model\.0\.weight twice",
    ),
    "no groups": (
        parts(lambda states: states["optimizer"].pop("param_groups")),
        r"optimizer\.param_groups is missing",
    ),
    "groups of numbers": (
        parts(lambda states: states["optimizer"]["param_groups"][0].update(params=[0, 1])),
        r"optimizer\.param_groups\.0\.params\.0: 0 is not of type str",
    ),
    "no state": (
        parts(lambda states: states["optimizer"].pop("state")),
        r"optimizer\.state is missing",
    ),
    "not a state": (parts(lambda states: states.update(optimizer=[])), r"optimizer: \[\] is not an object"),
    "a rate in words": (
        parts(lambda states: states["optimizer"]["param_groups"][0].update(lr="fast")),
        "the option lr of the optimizer is 'fast' in the checkpoint, and 0.05 here",
    ),
    "one beta": (
        parts(lambda states: states["optimizer"]["param_groups"][0].update(betas=[0.9])),
        r"the option betas of the optimizer is \[0\.9\]",
    ),
    "a last epoch in words": (
        parts(lambda states: states["scheduler"].update(last_epoch="x")),
        "last_epoch of the scheduler is 'x' in the checkpoint and 0 here",
    ),
    "a method": (
        parts(lambda states: states["scheduler"].update(step=1)),
        "step of the scheduler is not state, and the checkpoint has a value of it",
    ),
    "no scheduler's state": (parts(lambda states: states.update(scheduler=3)), "the state of the scheduler is 3"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_that_does_not_fit_is_refused(resume, name):
    change, text = CHANGES[name]
    said = resume(change, **ADAM)
    assert re.search(text, said), said
    assert "resume=False" in said


@pytest.mark.parametrize("kind", ["Adam", "SGD", "RMSprop", "Adagrad", "NAdam", "Rprop", "LBFGS", "Adafactor"])
def test_a_state_of_its_own_fits(kind):
    """Also one that lacks what an option needs that was switched on later."""
    layer = torch.nn.Linear(3, 2)
    optimizer = getattr(torch.optim, kind)(layer.parameters())

    def loss():
        optimizer.zero_grad()
        value = layer(torch.ones(1, 3)).sum() ** 2
        value.backward()
        return value

    optimizer.step(loss)
    named = NamedOptimizer(optimizer, lambda: dict(layer.named_parameters()))
    assert named.problems(named.state_dict()) == []
    for group in optimizer.param_groups:
        group.update({name: True for name in ("amsgrad", "centered") if name in group})
    assert named.problems(named.state_dict()) == []
