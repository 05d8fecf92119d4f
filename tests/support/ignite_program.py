"""A training in Ignite: FOLDER, and the settings `stop=ITERATION` (kill -9), `epochs=N`, `loaders=0` (own handlers)."""

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

with warnings.catch_warnings(action="ignore"):  # Ignite imports parts of torch that are deprecated
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.handlers import Checkpoint, DiskSaver
    from ignite.metrics import Loss, MeanAbsoluteError

    from accmt.integrations.ignite import Rules

SAVE = ("error@dev", "valid_loss keep 2", "valid_loss/error@ood")


def samples(count, seed):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed + 1))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True) + noise), batch_size=4)


def parts():
    """A trainer, its evaluators and their data, the network and its optimizer."""
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.3)
    trainer = create_supervised_trainer(net, optimizer, nn.functional.mse_loss)
    metrics = [{"loss": Loss(nn.functional.mse_loss), "error": MeanAbsoluteError()} for _ in range(2)]
    dev, ood = (create_supervised_evaluator(net, each) for each in metrics)
    loaders = {"dev": samples(16, 5), "ood": samples(16, 7)}
    return trainer, {"dev": dev, "ood": ood}, loaders, net, optimizer


def rules_in(folder, save=SAVE, **given):
    return Rules(folder, list(save), **{"metrics": {"error": "min"}, "patience": 3, **given})


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder, stop=None, epochs=6, loaders="1"):
    warnings.simplefilter("ignore")
    trainer, evaluators, data, net, optimizer = parts()
    every = {"evaluate_every": "4 steps"} if loaders == "1" else {}
    rules = rules_in(Path(folder) / "model", checkpoint_every="epoch", **every)
    to_save = {"trainer": trainer, "net": net, "optimizer": optimizer, "rules": rules}
    checkpoint = Checkpoint(to_save, DiskSaver(folder, require_empty=False), n_saved=1)
    own = {} if loaders == "1" else {"loaders": None}
    rules.attach(trainer, evaluators, model=net, checkpoint=checkpoint, **{"loaders": data, **own})
    if loaders == "0":

        @trainer.on(Events.ITERATION_COMPLETED(every=4))
        def evaluate():
            for name, evaluator in evaluators.items():
                evaluator.run(data[name])

    if stop:
        trainer.add_event_handler(Events.ITERATION_STARTED(once=int(stop)), kill)
    if newest := sorted(Path(folder).glob("*.pt"), key=lambda path: path.stat().st_mtime):
        Checkpoint.load_objects(to_save, torch.load(newest[-1]))
    trainer.run(samples(32, 0), max_epochs=int(epochs))


if __name__ == "__main__":
    main(sys.argv[1], **dict(argument.split("=") for argument in sys.argv[2:]))
