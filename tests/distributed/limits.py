"""Run by test_limits.py on two processes: limits, stops, training metrics and the last complete step."""

import json
import sys
import time
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Trainer

FOLDER = Path(sys.argv[1])
warnings.simplefilter("ignore")
generator = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(160, 4, generator=generator), torch.randn(160, 1, generator=generator))
VALID = TensorDataset(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator))


class Module(AcceleratorModule):
    def __init__(self, seconds=0.0, stops=None, fails=None, uneven=False):
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.seconds, self.stops, self.fails, self.uneven = seconds, stops, fails, uneven

    def training_step(self, batch):
        rank, step = PartialState().process_index, self.state.global_step
        time.sleep(self.seconds)
        if self.stops == (rank, step):
            self.trainer.stop(f"process {rank} asks")
        if self.fails is not None and self.fails in ((rank, step), (None, step)):
            raise ValueError("as planned")
        self.log({"kl": torch.tensor(float(rank)), "main": float(rank), "total": torch.tensor(1.0)}, step)
        if self.uneven and step % 2 == rank:  # nothing is sent to a tracker, so not all have to call it
            self.log({"some": torch.tensor(float(step))}, step)
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        return {"loss": nn.functional.mse_loss(self.model(batch[0]), batch[1])}


def fit(name, module, **arguments):
    torch.manual_seed(0)
    arguments = {"dataloader_num_workers": 0, "quiet": True, "checkpoint_every": "9 epochs", **arguments}
    hps = {"epochs": 1, "batch_size": 2, "optimizer": {"type": "AdamW", "lr": 0.01}}
    training = Trainer(hps, FOLDER / name, destroy_after_training=False, **arguments)
    error = None
    try:
        training.fit(module, DATA, VALID)
    except ValueError as raised:
        error = str(raised)
    decisions = [{**decision.to_json(), "elapsed": 0} for decision in training.decisions]
    stop = training.decisions[0].progress.elapsed if training.decisions else 0
    weights = [value.tolist() for value in module.model.state_dict().values()]
    checkpoints = sorted(path.name[-2:] for path in (FOLDER / name / "checkpoints").glob("checkpoint-*"))
    result = {"step": training.state.global_step, "decisions": decisions, "weights": weights, "error": error}
    return {**result, "elapsed": stop, "checkpoints": checkpoints}


METRICS = {"training_metrics": {"kl": "min", "main": "min", "some": "min"}, "evaluate_every": "10 steps"}
results = {
    "counter": fit("counter", Module(), stop_when="step >= 7", log_every=None),
    "fast": fit("fast", Module(0.02), stop_when="elapsed > 0.6 seconds"),
    "slow": fit("slow", Module(0.4), stop_when="elapsed > 0.9 seconds"),
    "loss": fit("loss", Module(0.05), stop_when="train_loss > 0 or kl > 9", training_metrics={"kl": "min"}),
    "asked": fit("asked", Module(0.02, stops=(1, 5))),
    "metrics": fit("metrics", Module(uneven=True), stop_when="step >= 20", log_every=None, **METRICS),
    "whole": fit("whole", Module(), log_every=3),
    "failed": fit("parts", Module(fails=(None, 11)), log_every=3, checkpoint_on_exception=True),
    "parts": fit("parts", Module(), log_every=3, checkpoint_on_exception=True),
}
Path(f"{FOLDER}-rank{PartialState().process_index}.json").write_text(json.dumps(results))
