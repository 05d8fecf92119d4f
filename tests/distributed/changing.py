"""Run by test_changing.py on two processes: what is trained changes meanwhile, with the wrapper and without it."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, Trainer

FOLDER = Path(sys.argv[1])
DATA = TensorDataset(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)))
HPS = {"epochs": 3, "batch_size": 2, "optimizer": {"type": "SGD", "lr": 0.05}}


class Module(AcceleratorModule):
    def __init__(self, case):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.case, self.part = case, self.model[0]
        if case == "network beside":
            torch.manual_seed(PartialState().process_index)  # every process begins with the weights of the first
            self.head = nn.Linear(2, 1)
        if case in ("unfreeze", "group"):
            self.freeze(self.part)

    def get_optimizer(self):
        if self.case == "network beside":
            return torch.optim.SGD([*self.model.parameters(), *self.head.parameters()], lr=0.05)
        return None

    def training_step(self, batch):
        outputs = self.model(batch[0])
        return ((self.head(outputs) if self.case == "network beside" else outputs) - 1).pow(2).mean()


class Changing(Callback):
    def on_before_optimizer_step(self, optimizer):
        module, is_due = self.module, self.state.global_step == 4
        if is_due and module.case == "freeze":
            module.freeze(module.part)
        if is_due and module.case == "unfreeze":
            module.unfreeze(module.part)
        if is_due and module.case == "group":
            module.unfreeze(module.part)
            optimizer.add_param_group({"params": list(module.part.parameters()), "lr": 0.02})


def weights_of(case, *, through_wrapper):
    module = Module(case)
    before = module.part.weight.clone()
    Trainer(
        HPS,
        FOLDER / f"{case}-{through_wrapper}",
        callback=Changing(),
        clip_grad=0.5,
        safe_mode=through_wrapper,
        dataloader_num_workers=0,
        quiet=True,
        enable_checkpointing=False,
        disable_model_saving=True,
        destroy_after_training=False,
    ).fit(module, DATA)
    assert not torch.equal(before, module.part.weight)
    values = [*module.model.parameters(), *(module.head.parameters() if case == "network beside" else ())]
    return torch.cat([value.detach().flatten() for value in values]).tolist()


results = {
    case: [weights_of(case, through_wrapper=through) for through in (True, False)]
    for case in ("freeze", "unfreeze", "group", "network beside")
}
Path(f"{FOLDER}-rank{PartialState().process_index}.json").write_text(json.dumps(results))
