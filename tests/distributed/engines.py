"""A training that the tests launch under an engine: `engines.py ENGINE FOLDER [key=value ...]`.

ENGINE is ddp, fsdp2, deepspeed-0 to -3 or deepspeed-2-offload; all on CPUs. With FSDP2, Accelerate shards a model on
accelerators only: it is told here that there are some.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

engine, folder, *pairs = sys.argv[1:]
arguments = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}
cut, seed, by_hand = arguments.pop("cut", None), arguments.pop("seed", 0), arguments.pop("by_hand", False)
count, dtype = arguments.pop("validation", 13), arguments.pop("dtype", None)

if engine.startswith("deepspeed-"):
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": engine.split("-")[1]}
    if engine.endswith("-offload"):
        os.environ["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] = "cpu"
else:
    os.environ["ACCELERATE_USE_CPU"] = "true"
if engine == "fsdp2":
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    os.environ |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}
    os.environ |= {"FSDP_MIN_NUM_PARAMS": "100"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

from accmt import AcceleratorModule, Callback, ExtendedAcceleratorModule, FunctionMetric, Trainer, set_seed  # noqa: E402

torch.set_num_threads(1)
rank = int(os.environ.get("RANK", "0"))
whole = []


class Model(nn.Module):
    """Odd sizes, so that nothing divides; a buffer that counts."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 33), nn.LayerNorm(33), nn.Linear(33, 3)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs):
        if self.training:
            self.seen += 1
        return self.last(self.dropout(torch.relu(self.norm(self.first(inputs)))))


class Module(AcceleratorModule):
    def __init__(self):
        self.model = Model()

    def training_step(self, batch):
        if cut is not None and self.state.global_step == cut:
            os._exit(3)
        if dtype is not None:
            assert str(batch[0].dtype) == dtype
        return nn.functional.cross_entropy(self.model(batch[0]).float(), batch[1])

    def validation_step(self, key, batch):
        logits = self.model(batch[0]).float()
        return {"loss": nn.functional.cross_entropy(logits, batch[1]), "accuracy": (logits.argmax(1), batch[1])}


class ByHand(ExtendedAcceleratorModule, Module):
    """Two backward passes a step."""

    def training_step(self, batch):
        loss = Module.training_step(self, batch)
        self.backward(loss / 2)
        again = nn.functional.cross_entropy(self.model(batch[0]).float(), batch[1])
        self.backward(again / 2)
        self.step_optimizer()
        self.step_scheduler()
        self.zero_grad()
        return loss


class Outcome(Callback):
    """What every process decided, and for each evaluation which parameters were not shared out when it had ended."""

    def on_evaluation_end(self):
        named = self.module.model.named_parameters()
        whole.append([name for name, value in named if not hasattr(value, "device_mesh")])

    def on_fit_end(self):
        decisions = [decision.to_json() for decision in self.trainer.decisions]
        found = {"decisions": decisions, "whole": whole}
        Path(f"{folder}-rank{rank}.json").write_text(json.dumps(found))


def make(number, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, 4, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long() + (inputs[:, 0] > 0).long())


set_seed(seed)
hps = {"epochs": 3, "batch_size": 4, "optimizer": {"type": "AdamW", "lr": 1e-2}, "scheduler": "CosineAnnealingLR"}
accuracy = FunctionMetric("accuracy", lambda predictions, labels: (predictions == labels).float().mean(), True)
trainer = Trainer(
    hps,
    folder,
    metrics=accuracy,
    dataloader_num_workers=0,
    callback=Outcome(),
    monitor={"grad_norm": True},
    **arguments,
)
trainer.register_model_saving("best_valid_loss")
trainer.fit((ByHand if by_hand else Module)(), make(86, 0), make(count, 1))
