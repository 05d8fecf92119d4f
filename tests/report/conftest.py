"""A training to report of, made once; one whose every name is hostile, made without one; and a browser."""

import json

import pytest
import torch
from browsing import chromium
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, FunctionMetric, HyperParameters, Trainer
from accmt.rules import Decision, Observation, Outcome, Progress
from accmt.rules.decision import KeptModel, Stop, Verdict

EVIL = (
    "</script><script>document.title='injected'</script><img src=x onerror=\"document.title='injected'\">"
    "'\"&amp;<b>\x1b[2J\u202e\u2028%{x} {{ 7 * 7 }} " + "x" * 10_000
)


class Line(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(4, 1)

    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        outputs = self.model(batch[0])
        return {"loss": nn.functional.mse_loss(outputs, batch[1]), "error": (outputs, batch[1])}


class Cut(Callback):
    def on_after_optimizer_step(self, optimizer):
        if self.state.global_step == 13:
            raise KeyboardInterrupt


def samples(count, seed):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def train(folder, lr=0.05, **arguments):
    """Train on two datasets under three rules; the training stops after epoch 8."""
    error = FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False)
    settings = HyperParameters(12, batch_size=4, optimizer="SGD", optim_kwargs={"lr": lr})
    given = {"metrics": error, "dataloader_num_workers": 0, "log_every": 1, "stop_when": "epoch >= 8", **arguments}
    trainer = Trainer(settings, folder, **given)
    for rule in ("valid_loss@dev", "error after 3 epochs", "error@dev/error@test keep 2"):
        trainer.register_model_saving(rule)
    trainer.fit(Line(), samples(20, 0), {"dev": samples(8, 1), "test": samples(8, 2)})
    return trainer


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a training that was interrupted, resumed and stopped."""
    folder = tmp_path_factory.mktemp("report") / "model"
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        train(folder, callback=Cut())
    train(folder)
    return folder


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """The folder of a stranger, in which every name and text is hostile."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    folder.mkdir()
    observations, decisions = [], []
    for number in range(1, 4):
        now, value = Progress(number, number, 0, number, 0, 1.0 * number), 1 / number
        made = Verdict(EVIL, (value,), None, Outcome.SAVED, EVIL, -1, (KeptModel((value,), number, number),))
        decisions.append(Decision(now, (made,), stop=Stop(EVIL, EVIL) if number == 3 else None))
        observations.append(Observation(now, {EVIL: {EVIL: value}}, value))
    far = Progress(10**400, 10**400, 0, 4, 0, float("inf"))
    observations.append(Observation(far, {EVIL: {EVIL: 1.7e308}, "b": {EVIL: -1.7e308}}, float("nan")))
    for name, entries in (("history", observations), ("decisions", decisions)):
        lines = (json.dumps(entry.to_json()) + "\n" for entry in entries)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    texts = {
        "schema": 1,
        "settings": {EVIL: EVIL, "n": [EVIL]},
        "starts": [{"command": EVIL, "changes": [EVIL], "host": 3}],
    }
    (folder / "run.json").write_text(json.dumps({**texts, "model": EVIL, "train_samples": {}}))
    huge = json.dumps({"step": 1, "time": 0, "values": {"grad_norm": 1.7e308, EVIL: "inf"}}) + "\n"
    (folder / "log.jsonl").write_text(
        huge + json.dumps({"step": 2, "time": 1e300, "event": EVIL, "text": EVIL}) + "\n[]\n{\n"
    )
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as started:
        yield started
