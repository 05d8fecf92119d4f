"""The bare loop with Accelerate's `prepare`, `backward` and `clip_grad_norm_`, as Accelerate's guide writes it."""

import torch.nn.functional as F
from accelerate import Accelerator
from tqdm import tqdm

from . import Run
from .measure import Measurement
from .task import Task, make_dataset, make_loader, make_model, make_optimizer


def train(task: Task) -> Run:
    dataset = make_dataset(task)
    network = make_model(task)
    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(network, make_optimizer(task, network), make_loader(task, dataset))

    with Measurement(network) as measurement, tqdm(total=task.steps, disable=not task.bar) as bar:
        model.train()
        for _ in range(task.epochs):
            for inputs, labels in loader:
                loss = F.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), task.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                bar.update()
                if bar.n % task.log_every == 0:
                    bar.set_postfix(loss=loss.item())
    return measurement.run(dataset)
