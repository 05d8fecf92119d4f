"""What a whole training takes, with all that is saved: the same by each library, and by a careful loop by hand.

    python benchmarks/whole.py [--task domains] [--rounds 10] [--only torch,accmt]

Ten epochs of an example with four validation sets, the best model of each, and a checkpoint after each epoch, as
`peers/whole` says; processes, rounds and displays are those of `overhead.py`. The program then checks that all took the
same steps and evaluated all samples, loads what each has saved, and exits with 1 if a model is missing or worse.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from overhead import REPOSITORY, installed_peers, names, print_versions, run_peer, run_rounds
from peers import PEERS, Peer
from peers.whole import BUCKETS, EPOCHS, EVAL_BATCH, Whole, make_task
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

CONTESTANTS = [name for name in PEERS if name not in ("accelerate", "torch-fast")]
CHECKPOINT = "checkpoint"
PATTERNS = ("*.pt", "*.ckpt", "pytorch_model.bin", "model.safetensors")
LOSS_TOLERANCE = 0.25  # relative; the order of the samples differs between libraries


@dataclass(frozen=True, slots=True)
class WholeRun:
    """What one contestant did in one process."""

    seconds: float  # from the end of its imports to its end
    process_seconds: float
    steps: int
    evaluated: int  # samples, in all evaluations
    losses: dict[str, float]  # of the saved model of each set on that set; mean of the checkpoint's


def main() -> int:
    parser = argparse.ArgumentParser(description="What a whole training takes, with all that is saved.")
    parser.add_argument("--task", choices=DATA, default="digits", help="the example (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="runs of each contestant (default: 10)")
    known = partial(names, known=CONTESTANTS)
    parser.add_argument("--only", type=known, default=CONTESTANTS, help=f"of {','.join(CONTESTANTS)} (default: all)")
    arguments = parser.parse_args()
    peers = installed_peers(arguments.only)
    print_versions(peers)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.pt")
        torch.save(DATA[arguments.task](), data)
        runs, problems = run_rounds(peers, arguments.rounds, partial(run_once, data=data))
        print_table(runs)
        problems |= verify(runs, make_task(data, Path(folder)))
    for name, problem in problems.items():
        print(f"\n{name}: {problem}")
    return 1 if problems else 0


def digits() -> dict[str, Any]:
    from digits import datasets

    train, validation = datasets()
    parts = {key: data.tensors for key, data in {"train": train, **validation}.items()}
    parts["dim"] = (parts["clean"][0] / 2, parts["clean"][1])
    return {key: {"images": images.contiguous(), "labels": labels} for key, (images, labels) in parts.items()}


def domains() -> dict[str, Any]:
    import domains
    from vader_data import rated_texts

    assert domains.BUCKETS == BUCKETS
    split = {domain: domains.split(rows) for domain, rows in rated_texts().items()}
    parts = {"train": [sample for training, _ in split.values() for sample in training]}
    stored, parts = {}, parts | {domain: list(validation) for domain, (_, validation) in split.items()}
    for key, samples in parts.items():
        texts, labels = zip(*samples, strict=True)
        stored[key] = {"flat": torch.cat(texts), "lengths": [len(text) for text in texts], "labels": list(labels)}
    return stored


DATA = {"digits": digits, "domains": domains}


def run_once(peer: Peer, *, data: Path) -> WholeRun:
    """One run of `peer` in a process of its own; raises ContestantFailed."""
    with tempfile.TemporaryDirectory() as folder:
        began = monotonic()
        run_peer(peer, Path(folder), ["--data", str(data)], bar=True)
        ended = monotonic()
        counts = json.loads(Path(folder, "run.json").read_text())
        losses = losses_of(make_task(data, Path(folder)))
        return WholeRun(ended - counts["imported"], ended - began, counts["steps"], counts["evaluated"], losses)


@torch.no_grad()
def losses_of(task: Whole) -> dict[str, float]:
    """The losses of what was saved, each on its set; what was not saved exactly once is missing."""
    losses, files = {}, [path for pattern in PATTERNS for path in task.folder.rglob(pattern)]
    for key in (*task.validation, CHECKPOINT):
        paths = [path for path in files if key in str(path.relative_to(task.folder))]
        found = [weights for path in paths if (weights := weights_in(path, task.model.state_dict()))]
        if len(found) == 1:
            task.model.eval().load_state_dict(found[0])
            sets = [task.collate([*data]) for name, data in task.validation.items() if key in (name, CHECKPOINT)]
            losses[key] = statistics.mean(cross_entropy(task.model(inputs), labels).item() for inputs, labels in sets)
    return losses


def weights_in(path: Path, expected: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The weights of the model in a file, whatever stands around them; None if it has others only."""
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=False)
    for part in (state, state.get("state_dict"), state.get("model")):
        weights = {name.removeprefix("model."): value for name, value in (part or {}).items()}
        if weights.keys() >= expected.keys():
            return {name: weights[name] for name in expected}
    return None


def print_table(runs: Mapping[str, Sequence[WholeRun]]) -> None:
    print("\nseconds from the end of the imports to the end of the process; process: the whole; ratios of minima")
    print(f"{'':<14}{'min':>8}{'median':>8}{'process':>9}{'/ by hand':>11}")
    minima = {name: min(run.seconds for run in done) for name, done in runs.items() if done}
    for name, minimum in minima.items():
        median = statistics.median(run.seconds for run in runs[name])
        process = min(run.process_seconds for run in runs[name])
        print(f"{name:<14}{minimum:8.3f}{median:8.3f}{process:9.3f}{minimum / minima.get('torch', minimum):11.3f}")


def verify(runs: Mapping[str, Sequence[WholeRun]], task: Whole) -> dict[str, str]:
    """What a contestant did otherwise than the others, by contestant; empty if all did the same."""
    samples = sum(len(data) for data in task.validation.values())  # type: ignore[arg-type]
    most = 2 * EVAL_BATCH * len(task.validation)  # which a trainer may evaluate before the first step
    problems, done = {}, [(name, run) for name, each in runs.items() for run in each]
    for name, run in done:
        for key in (*task.validation, CHECKPOINT):
            median = statistics.median(other.losses.get(key, 0.0) for _, other in done)
            if not abs(run.losses.get(key, 0.0) - median) <= LOSS_TOLERANCE * median:
                problems[name] = f"for {key}, it left {run.losses.get(key)}; the median of the losses is {median:.4f}."
        if run.steps != task.steps:
            problems[name] = f"took {run.steps} optimizer steps instead of {task.steps}."
        elif not 0 <= run.evaluated - EPOCHS * samples <= most:
            problems[name] = f"evaluated {run.evaluated} samples instead of {EPOCHS} times {samples}."
    if not problems:
        print(f"\nall alike: {task.steps} steps, {EPOCHS} evaluations, a best model of each set, a checkpoint")
    return problems


if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "examples")]
    sys.exit(main())
