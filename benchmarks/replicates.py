"""What standard errors cost in an evaluation: seconds on one core, and memory, over those of the same one without.

    python benchmarks/replicates.py [--samples 100000] [--replicates 200] [--rounds 5]

A rule such as `best_accuracy by 2 se` has each metric computed on resamples of the dataset too. Each line is a kind of
metric over the same scores of ten classes in memory; the first evaluation also draws the resamples. The program exits
with 1 if an accuracy takes longer than 0.3 seconds or 200 MB.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassF1Score

from accmt.metrics import FunctionMetric, Metric, TorchMetric
from accmt.metrics.gather import gatherer_of
from accmt.metrics.replicates import Resampling
from accmt.resampling import Draws

MOST_SECONDS, MOST_MEGABYTES = 0.3, 200
CPU = torch.device("cpu")
KINDS: dict[str, Callable[[], Metric]] = {
    "accuracy, a score per sample": lambda: FunctionMetric("x", _is_right, True, per_sample=True),
    "accuracy, from all arguments": lambda: FunctionMetric("x", lambda s, t: _is_right(s, t).float().mean(), True),
    "F1 of torchmetrics": lambda: TorchMetric("x", MulticlassF1Score(10)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="What standard errors cost in an evaluation.")
    parser.add_argument("--samples", type=int, default=100_000, help="of the dataset (%(default)s)")
    parser.add_argument("--replicates", type=int, default=200, help="as in Trainer(replicates=) (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="evaluations, of which the shortest counts (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(arguments.samples, 10, generator=generator)
    targets = torch.randint(0, 10, (arguments.samples,), generator=generator)
    print(f"{arguments.samples:,} samples, {arguments.replicates} replicates")
    print(f"{'':30}{'without':>10}{'with':>10}{'first':>10}{'memory':>10}")
    is_quick = True
    for name, make in KINDS.items():
        resamples = Draws(arguments.replicates)
        without = min(evaluated(make(), None, scores, targets) for _ in range(arguments.rounds))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        first, *others = (evaluated(make(), resamples, scores, targets) for _ in range(arguments.rounds + 1))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{name:30}{without:>9.3f}s{min(others):>9.3f}s{first:>9.3f}s{grown:>7.0f} MB")
        if name == next(iter(KINDS)):
            is_quick = min(others) <= MOST_SECONDS and grown <= MOST_MEGABYTES
    return 0 if is_quick else 1


def evaluated(metric: Metric, resamples: Draws | None, scores: Tensor, targets: Tensor) -> float:
    """Return the seconds of the processor that an evaluation takes, without the model."""
    resampling = None if resamples is None else Resampling(resamples, "dev", frozenset("x"))
    batches = list(zip(scores.split(512), targets.split(512), strict=True))
    start = time.process_time()
    gatherer = gatherer_of(metric, CPU, len(batches), resampling)
    for batch in batches:
        gatherer.add(batch)
    gatherer.values()
    return time.process_time() - start


def _is_right(scores: Tensor, targets: Tensor) -> Tensor:
    return scores.argmax(1) == targets


if __name__ == "__main__":
    sys.exit(main())
