"""The predictions of a module for a dataset, in order, on the main process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor

from accmt.distributed.collective import everywhere, from_each, from_main, to_main
from accmt.distributed.strategy import shards_model
from accmt.loop.evaluate import Evaluation, batches_of, inference
from accmt.loop.exclusive import evaluating
from accmt.loop.hooks import name_of_step, noted
from accmt.loop.out_of_memory import tried_again


def predict(evaluation: Evaluation, step: Callable[[Any], Any]) -> Any:
    """Predict the one dataset of an evaluation.

    for batch in dataset:
        add step(batch)
    gather, join

    Returns:
        The joined predictions, in main memory, on the main process; None elsewhere.
    """
    module, outputs = evaluation.module, list[Any]()
    read = partial(_read, evaluation, step, outputs)
    with evaluating(), inference(module, evaluation.model):
        if shards_model(module.accelerator):
            read()  # processes wait for each other in every forward pass
        else:
            from_each(read)
    # Process p of n has the batches p, p+n, p+2n, ... One of each process at a time, to send little at once.
    turns = [to_main(outputs[turn : turn + 1]) for turn in range(max(everywhere(partial(len, outputs))))]
    parts = [part for share in turns if share is not None for part in chain(*share)]
    joined: list[Any] = []
    from_main(lambda: joined.append(_joined(parts)))
    return joined[0] if joined else None


def _read(evaluation: Evaluation, step: Callable[[Any], Any], outputs: list[Any]) -> None:
    module, [loader] = evaluation.module, evaluation.loaders.values()
    for batch, counts in batches_of(evaluation, loader):
        with noted(name_of_step(module, "predict_step"), None, batch):
            output = tried_again(partial(step, batch), lambda: evaluation.repeats)
        if counts:
            outputs.append(recursively_apply(lambda tensor: tensor.detach().to("cpu", copy=True), output))


def _joined(parts: Sequence[Any]) -> Any:
    """Join the predictions for batches: tensors by their first dimension, fields of dictionaries and tuples one by one,
    lists; of other values return a list."""
    if not parts:
        raise ValueError("there is nothing to predict: the dataset has no samples")
    one, other = (*dict.fromkeys(map(_form, parts)), None)[:2]
    if other is not None:
        text = "for samples of different shapes, return a list with one tensor for each sample"
        raise TypeError(f"the predictions for a batch are {one}, and for another {other}: they must be alike; {text}")
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        fields = map(_joined, zip(*parts, strict=True))
        return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
    if isinstance(first, Tensor) and first.ndim:
        return torch.cat(list(parts))
    return list(chain(*parts) if isinstance(first, list) else parts)


def _form(value: Any) -> str:
    """Describe what must be the same in all batches."""
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(str, value))}"
    if isinstance(value, Tensor) and value.ndim:
        return f"a tensor of shape ({', '.join(['*', *map(str, value.shape[1:])])})"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "a list" if isinstance(value, list) else "single values"
