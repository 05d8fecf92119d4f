"""Run by test_collective.py on two processes: `agreeing.py FOLDER` writes what each got from each collective."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from accmt import FunctionMetric, MetricParallel
from accmt.distributed import collective
from accmt.distributed.even_batches import in_step
from accmt.distributed.failures import Meeting
from accmt.distributed.gradient_averaging import average_gradients
from accmt.distributed.process_group import join_processes, leave_processes
from accmt.metrics.gather import gatherer_of

join_processes()
rank = PartialState().process_index


def of(*ranks):
    """Return an action that fails on some processes, and elsewhere gives the rank."""

    def action():
        if rank in ranks:
            raise KeyError(f"weights of {rank}")
        return rank

    return action


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        cause = type(error.__cause__).__name__
        return f"{type(error).__name__}({cause}): {error}"


class Broken(MetricParallel):
    def compute(self, values):
        return {self.name: float(of(1)())}


def value_of(metric, *batches):
    gatherer = gatherer_of(metric, torch.device("cpu"))
    for batch in batches:
        gatherer.add(batch)
    return gatherer.values()


def told():
    meeting = Meeting("lunch")
    meeting.tell(f"process {rank}")
    return meeting.told(timedelta(seconds=300))


def alone():
    meeting = Meeting("nobody comes")
    if rank:
        meeting.tell("here")
        return meeting.told(timedelta(seconds=0.2))
    return "did not come"


def gradients():
    """Return averaged gradients: sparse ones of different rows, dense ones of one process only, and none."""
    torch.manual_seed(0)
    sparse, dense, unused = nn.Embedding(4, 1, sparse=True), nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
    rows = torch.tensor([rank, 2])
    ((rank + 1) * sparse(rows).sum() + (dense(torch.ones(1)).sum() if rank else 0)).backward()
    average_gradients([sparse.weight, dense.weight, unused.weight])
    mean = sparse.weight.grad.coalesce()
    return [mean.indices().tolist(), mean.values().flatten().tolist(), dense.weight.grad.item(), unused.weight.grad]


ones = torch.ones(1)
uneven = [(ones,), (torch.ones(1, 2),)]
total = FunctionMetric("total", lambda values: values.sum(), True)
results = {
    "everywhere": outcome(collective.everywhere, of()),
    "everywhere fails on one": outcome(collective.everywhere, of(1)),
    "everywhere fails on both": outcome(collective.everywhere, of(0, 1)),
    "from_each": outcome(collective.from_each, of()),
    "from_each fails on one": outcome(collective.from_each, of(1)),
    "on_main": outcome(collective.on_main, of(1)),
    "on_main fails": outcome(collective.on_main, of(0)),
    "from_main fails": outcome(collective.from_main, of(0)),
    "agreed": outcome(collective.agreed, {"rank": rank}),
    "raise_on_all": outcome(collective.raise_on_all, None),
    "raise_on_all of one": outcome(collective.raise_on_all, ValueError("nan") if rank else None),
    "metric on all": outcome(value_of, total, (ones,)),
    "metric fails on one": outcome(value_of, Broken("broken"), (ones,)),
    "metric that main cannot join": outcome(value_of, total, *uneven),
    "gradients": outcome(gradients),
    "told": outcome(told),
    "told by one": outcome(alone),
    "in step": [[batch, counts] for batch, counts in in_step(["a", "b", "c"][: 3 - 2 * rank], 3 - 2 * rank)],
    "in step, none here": [[batch, counts] for batch, counts in in_step(["a"][rank:], 1 - rank)],
    "in step, unknown": [[batch, counts] for batch, counts in in_step(iter("ab"[rank:]), None)],
    "in step, unknown, none here": [[batch, counts] for batch, counts in in_step(iter("a"[rank:]), None)],
    "still together": outcome(collective.everywhere, of()),
}
Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(results, default=float))
leave_processes()
