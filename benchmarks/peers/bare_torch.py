"""The loop as PyTorch's tutorials write it, with a tqdm bar."""

import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from . import Run
from .measure import Measurement
from .task import Task, make_dataset, make_loader, make_model, make_optimizer


def train(task: Task) -> Run:
    dataset = make_dataset(task)
    model = make_model(task)
    loader = make_loader(task, dataset)
    optimizer = make_optimizer(task, model)

    with Measurement(model) as measurement, tqdm(total=task.steps, disable=not task.bar) as bar:
        model.train()
        for _ in range(task.epochs):
            for inputs, labels in loader:
                loss = F.cross_entropy(model(inputs), labels)
                loss.backward()
                clip_grad_norm_(model.parameters(), task.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                bar.update()
                if bar.n % task.log_every == 0:
                    bar.set_postfix(loss=loss.item())
    return measurement.run(dataset)
