"""What a whole training takes, with all that is saved: the same by each library, and by a careful loop by hand.

    python benchmarks/whole.py [--task domains] [--rounds 10] [--only torch,accmt] [--json FILE]

Ten epochs of an example (`examples/digits.py`, `examples/domains.py`) with four validation sets, evaluated after each
epoch. The best model of each set is saved, and a checkpoint after each epoch; `peers/whole` says what each contestant
does. Processes, rounds and displays are those of `overhead.py`. The time is that from the end of the imports to the
end of the process; `process` is that of the whole process.

The program then checks that all took the same number of steps, evaluated all samples each time, and left a best model
for each set and a checkpoint: each is loaded and evaluated, and is as good as those of the others. It exits with 1 if
that is not so. It needs a POSIX system.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from overhead import REPOSITORY, installed_peers, names, print_versions, run_peer, run_rounds
from peers import PEERS, Peer
from peers.whole import BUCKETS, Whole, collate_texts, make_datasets, make_model
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

CONTESTANTS = [name for name in PEERS if name != "accelerate"]
BASELINE = "torch"
TRIAL_BATCHES = 2  # of each set, which a trainer may evaluate before the first step
CHECKPOINT = "checkpoint"
LOSS_TOLERANCE = 0.25  # relative; the order of the samples differs between libraries


@dataclass(frozen=True, slots=True)
class WholeRun:
    """What one contestant did in one process."""

    seconds: float  # from the end of its imports to its end
    process_seconds: float
    steps: int
    evaluated: int  # samples, in all evaluations
    losses: dict[str, float]  # of the saved model of each set on that set; and of the checkpoint, their mean


def main() -> int:
    arguments = parse_arguments()
    peers = installed_peers(arguments.only)
    print_versions(peers)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.pt")
        torch.save({"name": arguments.task, "parts": DATA[arguments.task]()}, data)
        runs, problems = run_rounds(peers, arguments.rounds, partial(run_once, data=data))
        print_table(runs)
        problems |= verify(runs, torch.load(data))
    for name, problem in problems.items():
        print(f"\n{name}: {problem}")
    if arguments.json:
        plain = {name: [asdict(run) for run in done] for name, done in runs.items()}
        arguments.json.write_text(json.dumps({"task": arguments.task, "runs": plain, "problems": problems}, indent=2))
    return 1 if problems else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a whole training takes, with all that is saved.")
    parser.add_argument("--task", choices=DATA, default="digits", help="the example (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="runs of each contestant (default: 10)")
    known = partial(names, known=CONTESTANTS)
    parser.add_argument("--only", type=known, default=CONTESTANTS, help=f"of {','.join(CONTESTANTS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    return parser.parse_args()


def digits() -> dict[str, Any]:
    from digits import datasets

    train, validation = datasets()
    clean = validation["clean"].tensors
    parts = {"train": train.tensors, **{key: data.tensors for key, data in validation.items()}}
    parts["dim"] = (clean[0] / 2, clean[1])
    return {key: {"images": images.contiguous(), "labels": labels} for key, (images, labels) in parts.items()}


def domains() -> dict[str, Any]:
    import domains
    from vader_data import rated_texts

    assert domains.BUCKETS == BUCKETS
    split = {domain: domains.split(rows) for domain, rows in rated_texts().items()}
    parts = {"train": [sample for training, _ in split.values() for sample in training]}
    parts |= {domain: list(validation) for domain, (_, validation) in split.items()}
    return {key: flat(samples) for key, samples in parts.items()}


def flat(samples: Sequence[tuple[Tensor, int]]) -> dict[str, Any]:
    texts, labels = zip(*samples, strict=True)
    return {"flat": torch.cat(texts), "lengths": [len(text) for text in texts], "labels": list(labels)}


DATA = {"digits": digits, "domains": domains}


def run_once(peer: Peer, *, data: Path) -> WholeRun:
    """One run of `peer` in a process of its own; raises ContestantFailed."""
    with tempfile.TemporaryDirectory() as folder:
        began = monotonic()
        run_peer(peer, Path(folder), ["--data", str(data)], bar=True)
        ended = monotonic()
        counts = json.loads(Path(folder, "run.json").read_text())
        losses = losses_of(Path(folder), torch.load(data))
        return WholeRun(ended - counts["imported"], ended - began, counts["steps"], counts["evaluated"], losses)


def losses_of(folder: Path, content: Mapping[str, Any]) -> dict[str, float]:
    """The losses of what was saved, each on its set; what was not saved is missing."""
    datasets, losses = make_datasets(content["parts"]), {}
    del datasets["train"]
    model = make_model(content["name"]).eval()
    for key in (*datasets, CHECKPOINT):
        found = [weights for path in saved_in(folder, key) if (weights := weights_in(path, model.state_dict().keys()))]
        if len(found) == 1:
            model.load_state_dict(found[0])
            each = [loss_on(data, model) for name, data in datasets.items() if key in (name, CHECKPOINT)]
            losses[key] = statistics.mean(each)
    return losses


def saved_in(folder: Path, key: str) -> list[Path]:
    patterns = ("*.pt", "*.ckpt", "pytorch_model.bin", "model.safetensors")
    found = [path for pattern in patterns for path in folder.rglob(pattern)]
    return [path for path in found if key in str(path.relative_to(folder))]


def weights_in(path: Path, expected: Any) -> dict[str, Tensor] | None:
    """The weights of the model in a file, whatever stands around them; None if it has others only."""
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=False)
    for part in (state, state.get("state_dict"), state.get("model")):
        weights = {name.removeprefix("model."): value for name, value in (part or {}).items()}
        if weights.keys() >= expected:
            return {name: weights[name] for name in expected}
    return None


@torch.no_grad()
def loss_on(data: Any, model: torch.nn.Module) -> float:
    collate = collate_texts if isinstance(data, list) else default_collate
    [(inputs, labels)] = DataLoader(data, len(data), collate_fn=collate)
    return torch.nn.functional.cross_entropy(model(inputs), labels).item()


def print_table(runs: Mapping[str, Sequence[WholeRun]]) -> None:
    print("\nseconds from the end of the imports to the end of the process; process: the whole; ratios of minima")
    print(f"{'':<14}{'min':>8}{'median':>8}{'process':>9}{'/ by hand':>11}")
    minima = {name: min(run.seconds for run in done) for name, done in runs.items() if done}
    for name, minimum in minima.items():
        median = statistics.median(run.seconds for run in runs[name])
        process = min(run.process_seconds for run in runs[name])
        ratio = f"{minimum / minima[BASELINE]:.3f}" if BASELINE in minima else "-"
        print(f"{name:<14}{minimum:8.3f}{median:8.3f}{process:9.3f}{ratio:>11}")


def verify(runs: Mapping[str, Sequence[WholeRun]], content: Mapping[str, Any]) -> dict[str, str]:
    """What a contestant did otherwise than the others, by contestant; empty if all did the same."""
    datasets = make_datasets(content["parts"])
    task = Whole(content["name"], Path(), datasets.pop("train"), datasets, make_model(content["name"]), default_collate)
    samples = [len(data) for data in datasets.values()]  # type: ignore[arg-type]
    most = sum(min(size, TRIAL_BATCHES * task.eval_batch_size) for size in samples)
    problems: dict[str, str] = {}
    done = [(name, run) for name, each in runs.items() for run in each]
    for key in (*datasets, CHECKPOINT):
        median = statistics.median([run.losses[key] for _, run in done if key in run.losses] or [0.0])
        for name, run in done:
            if key not in run.losses:
                problems[name] = f"left not exactly one model for {key}."
            elif not abs(run.losses[key] - median) <= LOSS_TOLERANCE * median:
                problems[name] = f"the loss for {key} is {run.losses[key]:.4f}, that of others about {median:.4f}."
    for name, run in done:
        if run.steps != task.steps:
            problems[name] = f"took {run.steps} optimizer steps instead of {task.steps}."
        elif not 0 <= run.evaluated - task.epochs * sum(samples) <= most:
            problems[name] = f"evaluated {run.evaluated} samples instead of {task.epochs} times {sum(samples)}."
    if done and not problems:
        print(
            f"\nall alike: {task.steps} steps, {task.epochs} evaluations on {len(samples)} sets, best models, checkpoint"
        )
    return problems


if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "examples")]
    sys.exit(main())
