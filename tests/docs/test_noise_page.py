"""The page about selection beyond noise: its tables are what its program prints, and its rules are rules."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, FunctionMetric, Trainer
from accmt.rules import Facts, Reported, Rules, SavingRule, check, replicated

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "explanation" / "beyond-noise.md").read_text()


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("noise_of_docs", ROOT / "scripts" / "noise.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("table", ["best_of", "luck", "costs"])
def test_tables(program, table):
    assert "\n".join(getattr(program, table)()) in PAGE


def test_rules():
    metrics = {name: Reported(("dev",), True) for name in ("accuracy", "f1")}
    facts = Facts(metrics, ("dev",))
    [block] = re.findall(r"```rule\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        rules = Rules((SavingRule.parse(line.split("#")[0]),))
        assert check(rules, facts) == []
        assert replicated(rules, facts)


def test_a_loss_for_each_sample(tmp_path):
    """The step of the page gives replicates of valid_loss, without a warning."""
    [step] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

    class Module(AcceleratorModule):
        def __init__(self):
            self.model = nn.Linear(4, 3)

        def training_step(self, batch):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        exec(step, globals(), locals())

    data = TensorDataset(torch.randn(16, 4), torch.arange(16) % 3)
    metric = FunctionMetric("accuracy", lambda outputs, targets: outputs.argmax(1) == targets, True, per_sample=True)
    trainer = Trainer({"batch_size": 8}, tmp_path / "model", metrics=metric, quiet=True)
    trainer.register_model_saving("best_valid_loss by 2 se")
    trainer.fit(Module(), data, {"dev": data})
    [line] = (tmp_path / "model" / "replicates.jsonl").read_text().splitlines()
    assert len(set(json.loads(line)["replicates"]["dev"]["valid_loss"])) > 100


def test_picture(program, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    assert program.PICTURE.stat().st_size < 150_000
    monkeypatch.setattr(program, "PICTURE", tmp_path / "picture.png")
    program.draw()
    assert (tmp_path / "picture.png").stat().st_size > 10_000
