"""The first hour of a newcomer, typed in a terminal in a fresh clone: what is to be read there, as whole sentences."""

import json
import re
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from terminal import Terminal

ROOT = Path(__file__).parents[2]
TRAIN = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
SMALL = """\
import torch
from torch import nn
from torch.utils.data import TensorDataset
from accmt import Trainer
inputs = torch.arange(384.0).reshape(96, 4).cos()
data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
hps = {"epochs": 2, "batch_size": 8, "optimizer": {"type": "SGD", "lr": 0.1}}
trainer = Trainer(hps, "runs/small", seed=7, restore_best=True)
trainer.register_model_saving("best_mae@dev")
net = nn.Linear(4, 1)
history = trainer.fit(net, data, {"dev": data}, loss_fn=nn.MSELoss())
print(repr(history), len(history.to_pandas()))
"""
AFTER = """\
from accmt import load_best
from small import data, inputs, net, nn, torch, trainer
fresh = nn.Linear(4, 1)
saved = load_best("runs/small", fresh)
print(saved.rule, saved.epoch, saved.values == trainer.best("best_mae@dev").values, tuple(saved.values))
print("the best is in the network too:", torch.equal(fresh.weight, net.weight))
again = trainer.evaluate(fresh, {"dev": data}, loss_fn=nn.MSELoss())
print("evaluated again:", again["dev"]["mae"] == saved.values["mae@dev"], tuple(trainer.predict(fresh, inputs).shape))
"""
BERT = """\
import torch
from transformers import BertConfig, BertForSequenceClassification
from accmt import Trainer
config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
texts = [{"input_ids": torch.arange(5) + i % 4, "labels": torch.tensor(i % 2)} for i in range(32)]
trainer = Trainer({"epochs": 2, "batch_size": 16}, "runs/bert")
print(trainer.fit(BertForSequenceClassification(config), texts, {"dev": texts}))
"""
SLOWLY = """\
def slowly(output, target):
    __import__("time").sleep(0.12)
    return nn.functional.mse_loss(output, target)
"""

QUICKSTART = """\
$ python -c "import accmt; print(accmt.__file__)"
.../clone/accmt/__init__.py
$ python train.py
model        Sequential, 4,810 parameters, 4,810 of them trained
...
length       95 steps, 5 epochs
...
writes to    runs/quickstart
best_accuracy@dev: saves when accuracy@dev is higher than at its last save; ...
evaluation 1 at step 19  dev: valid_loss ..., accuracy ...  (... s)
  best_accuracy@dev: ... is the first, saved
...
epoch 5/5 ━...━ 95/95  loss ...
best_accuracy@dev  accuracy@dev ...  held out: valid_loss@test ..., accuracy@test ...  step ...
every decision and its reason: accmt explain runs/quickstart

the training is complete, after 95 steps
$ python train.py
model ...
note: continuing from checkpoint-0005-step-95
...warning: nothing was trained: the training is already finished, after 5 epochs and 95 steps. Give more epochs to \
continue, or resume=False to start from scratch
...
$ sed -i 's/"epochs": 5/"epochs": 6/; s/3e-3/1e-3/' train.py; python train.py
model ...
note: continuing from checkpoint-0005-step-95
note: epochs was 5 and is 6
note: lr was 0.003 and is 0.001
evaluation 6 at step 114  dev: ...
the training is complete, after 114 steps
$ accmt
usage: accmt [-h] [--version] COMMAND ...

Check rules, show what a training decided and what it left on the disk, and start trainings.
...
$ accmt expalin
usage: accmt [-h] [--version] COMMAND ...
accmt: error: there is no command 'expalin', did you mean 'explain'? Commands are check, explain, replay, ...
$ accmt explain runs/quickstart --last 2
Decisions
evaluation  step  epoch  rule ...why
         5    95      5  best_accuracy@dev  ...
         6   114      6  best_accuracy@dev  ...

best_accuracy@dev: saved ... times; the best at the end is ... of evaluation ..., at step ...
best_accuracy@dev: held out, model of step ...: valid_loss@test ..., accuracy@test ...
no rule asked to stop
$ accmt explain runs/quickstart --json | head -n 1
{"step": 19, "epoch": 1, ..."outcome": "saved", "reason": "... is the first, saved"...}
$ accmt explain runs/quickstart --csv | head -n 2
evaluation,step,epoch,rule,values,verdict,why
1,19,1,best_accuracy@dev,...,saved,...is the first, saved...
$ accmt check best_acuracy@dev --metric accuracy:max@dev
unknown metric 'acuracy'
    best_acuracy@dev
         ^^^^^^^
...
  did you mean 'accuracy'?
$ accmt checkpoints runs/quickstart --verify
...
checkpoint-0006-step-114  ...verified  <- resume
...
a resume continues from checkpoint-0006-step-114
no training is running here
...
"""
MISTAKES = """\
$ sed 's/best_mae/best_mea/' small.py > wrong.py; python wrong.py
Traceback (most recent call last):
  File ".../wrong.py", line 11, in <module>
    history = trainer.fit(net, data, {"dev": data}, loss_fn=nn.MSELoss())
              ...
accmt.rules.errors.RuleError: unknown metric 'mea'
    best_mea@dev
         ^^^
  this training reports: ...
  did you mean 'mae'?
$ sed 's/seed=7/sead=7/' small.py > wrong.py; python wrong.py 2>&1 | tail -n 2
accmt.config.errors.ConfigError: 1 mistake in Trainer(...):
  sead: unknown argument, did you mean 'seed'?
$ sed 's/"epochs"/"epoch"/' small.py > wrong.py; python wrong.py 2>&1 | tail -n 2
accmt.config.errors.ConfigError: 1 mistake in Trainer(...):
  epoch: unknown key, did you mean 'epochs'? Allowed are epochs, max_steps, batch_size, optimizer, ...
$ sed 's/batch.0.), batch/batch[0][:, 1:]), batch/; s/quickstart/wrong/' train.py > wrong.py; python wrong.py
model ...
Traceback (most recent call last):
  File ".../wrong.py", line ..., in <module>
    trainer.fit(Digits(), train, {"dev": dev, "test": test})
  File ".../wrong.py", line ..., in training_step
    return nn.functional.cross_entropy(self.model(batch[0][:, 1:]), batch[1])
...
RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x63 and 64x64)
raised in Digits.training_step, epoch 1, step 0
its batch: [float32 (32, 64), int64 (32,)]
"""
MODELS = """\
$ python small.py
model        Linear, 5 parameters, 5 of them trained
...
the training is complete, after 24 steps
TrainingHistory(2 evaluations, 2 epochs) 8
$ python after.py
model ...
best_mae@dev 2 True ('mae@dev',)
the best is in the network too: True
evaluated again: True (96, 1)
$ python bert.py
model        BertForSequenceClassification, ... parameters, ... of them trained
parts        bert: ...; classifier: 18
...
the training is complete, after 4 steps
TrainingHistory(2 evaluations, 2 epochs)
"""
PROCESSES = """\
$ accmt rehearse small.py
rehearsal 1/3: a short training from scratch
...
disk: checkpoints and saved models need ... kB, ... are free
resume after SIGKILL: exact, bit by bit
$ accmt launch -N 2 smal.py
there is no script smal.py (the current folder is ...), did you mean 'small.py'?
$ sed 's#runs/small#runs/two#' small.py > two.py
$ accmt launch --cpu -N 2 two.py
accmt launch: ddp, 2 processes on CPUs
...
batch        16 samples (8 a process, 2 processes)
length       12 steps, 2 epochs
...
the training is complete, after 12 steps
...
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh clone of this checkout, with what is not committed yet, and the scripts of a newcomer."""
    folder = tmp_path_factory.mktemp("hour") / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    changes = subprocess.run(["git", "diff", "HEAD", "--binary"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["git", "apply", "--allow-empty"], cwd=folder, check=True, input=changes)
    slow = SLOWLY + SMALL.replace('": 2', '": 4').replace("nn.MSELoss()", "slowly").replace("runs/small", "runs/slow")
    slow = slow.replace("seed=7", 'seed=7, checkpoint_every="5 steps"').replace("def slowly", "\ndef slowly")
    for name, text in {"train": TRAIN, "small": SMALL, "after": AFTER, "bert": BERT, "slow": slow}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def terminal(clone):
    with closing(Terminal(clone)) as terminal:
        yield terminal


@pytest.mark.parametrize("session", [QUICKSTART, MISTAKES, MODELS], ids=["quickstart", "mistakes", "models"])
def test_what_is_read(terminal, session):
    terminal.follow(session)


@pytest.mark.xdist_group("processes")
def test_several_processes(terminal):
    terminal.follow(PROCESSES)


def test_interrupted_and_killed(terminal, clone):
    terminal.start("python slow.py", "evaluation 1 at step 12")
    last = terminal.press("c").rstrip().splitlines()[-1]
    sentence = r"interrupted at step \d+; run again to continue from step (\d+)(| \(\d+ steps? (is|are) repeated\))"
    told = re.fullmatch(sentence, last)
    assert told, last
    terminal.start("python slow.py", f"-step-{told[1]}", "evaluation 3 at step 36")
    assert "Stopped" in terminal.press("z")
    assert "Killed" in terminal.type("kill -9 %1; fg")
    listed = terminal.type("accmt checkpoints runs/slow --verify")
    [newest] = re.findall(r"^(\S+) .* verified  <- resume$", listed, re.MULTILINE)
    again = "...evaluation 4 at step 48  dev: ...\nthe training is complete, after 48 steps\n...\n"
    terminal.follow(f"$ python slow.py\nmodel ...\nnote: continuing from {newest}\n{again}")
    told = json.loads((clone / "runs/slow/run.json").read_text())
    assert (told["arguments"]["restore_best"], told["seed"], told["hyperparameters"]["epochs"]) == (True, 7, 4)
    assert [start["command"] for start in told["starts"]] == ["slow.py"] * 3
