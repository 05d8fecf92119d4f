"""The bare loop with torch's fast parts: batches cut out of the data by one index, a fused optimizer, and the loss read
only where it is shown."""

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from . import Run
from .measure import Measurement
from .task import Task, make_dataset, make_model


def train(task: Task) -> Run:
    dataset = make_dataset(task)
    inputs, labels = dataset.tensors
    model = make_model(task)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=task.learning_rate, weight_decay=task.weight_decay, fused=True)

    with Measurement(model) as measurement, tqdm(total=task.steps, disable=not task.bar) as bar:
        model.train()
        for _ in range(task.epochs):
            for index in torch.randperm(len(inputs)).split(task.batch_size):
                loss = F.cross_entropy(model(inputs[index]), labels[index])
                loss.backward()
                clip_grad_norm_(parameters, task.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                bar.update()
                if bar.n % task.log_every == 0:
                    bar.set_postfix(loss=loss.item())
    return measurement.run(dataset)
