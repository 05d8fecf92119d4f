"""What a checkpoint costs: a bare `save_state`, ours, ours in the background, torch's DCP; and what loading costs.

    python benchmarks/checkpoint.py [--rounds 5] [--parameters 50] [--threads 2] [--only ...] [--json FILE]

Every run is a fresh process that makes a model of so many million parameters, trains one step with AdamW, and then
writes the same state several times; each round runs every contestant once, each round starting with the next of them.
The figures of a run are the minima over its writes but the first, which pays for memory that later ones use again:

    blocked   seconds until the training can go on
    written   seconds until the checkpoint is complete
    loaded    seconds that a fresh process, which has the model and the optimizer, takes to put them into the state of
              the checkpoint; with accmt every byte is verified first
    memory    the largest resident size of the process that writes, in MiB

`accmt` and `accmt async` go through the checkpointer of a real training: what is collected, copied, written, hashed,
flushed, published and pruned is the whole of what `fit` does. Bare `save_state` is neither flushed nor checked, and
cannot be trusted after a crash; it is here as the least that has to be paid.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CONTESTANTS = ("save_state", "accmt", "accmt async", "dcp async")
WRITES = 4
MEGA = 2**20


def main() -> int:
    arguments = parse_arguments()
    if arguments.contestant:
        print(json.dumps(measure(arguments)))
        return 0
    names = arguments.only.split(",") if arguments.only else list(CONTESTANTS)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            runs[name].append(run(name, arguments))
            print(f"round {number + 1}, {name}: {shown(runs[name][-1])}", file=sys.stderr)
    print_table(runs)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(runs, indent=1))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parameters", type=int, default=50, help="millions")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--only", help=f"some of {','.join(CONTESTANTS)}")
    parser.add_argument("--folder", help="where to write; a temporary folder by default")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--phase", choices=("write", "load"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--contestant", name, "--parameters", str(arguments.parameters)]
    command += ["--threads", str(arguments.threads)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for phase in ("write", "load"):
            ran = subprocess.run(
                [*command, "--folder", folder, "--phase", phase], capture_output=True, text=True, env=environment
            )
            if ran.returncode:
                sys.exit(f"{name} failed:\n{ran.stderr[-3000:]}")
            figures |= json.loads(ran.stdout.splitlines()[-1])
    return figures


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    folder, millions = Path(arguments.folder), arguments.parameters
    if arguments.phase == "load":
        load = {"save_state": load_state, "dcp async": load_dcp}.get(arguments.contestant, load_accmt)
        return {"loaded": timed(load(folder, millions))}
    if arguments.contestant == "save_state":
        return save_state(folder, millions)
    if arguments.contestant == "dcp async":
        return write_dcp(folder, millions)
    return write_accmt(folder, millions, in_background=arguments.contestant == "accmt async")


def make_model(millions: int) -> Any:
    """Twelve square layers, a few small ones: tensors of the sizes that a transformer of this size has."""
    import torch

    width = int((millions * 1e6 / 12) ** 0.5)
    layers = [layer for _ in range(12) for layer in (torch.nn.Linear(width, width), torch.nn.LayerNorm(width))]
    return torch.nn.Sequential(*layers)


def train_one_step(model: Any, optimizer: Any) -> None:
    import torch

    model(torch.randn(2, model[0].in_features)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def best_of(write: Callable[[int], float], settle: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Minima over several writes; `write` gives the seconds that it blocked, `settle` waits for the rest."""
    blocked, written = [], []
    for number in range(WRITES):
        start = time.perf_counter()
        blocked.append(write(number))
        settle()
        written.append(time.perf_counter() - start)
    return {"blocked": min(blocked[1:]), "written": min(written[1:]), "memory": peak()}


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak() -> float:
    """The largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trained(millions: int) -> tuple[Any, Any]:
    import torch

    model = make_model(millions)
    optimizer = torch.optim.AdamW(model.parameters())
    train_one_step(model, optimizer)
    return model, optimizer


def save_state(folder: Path, millions: int) -> dict[str, float]:
    from accelerate import Accelerator

    accelerator = Accelerator()
    accelerator.prepare(*trained(millions))

    def write(number: int) -> float:
        seconds = timed(lambda: accelerator.save_state(str(folder / str(number))))
        shutil.rmtree(folder / str(number - 1), ignore_errors=True)  # as ours, which keeps the newest
        return seconds

    return best_of(write)


def load_state(folder: Path, millions: int) -> Callable[[], object]:
    from accelerate import Accelerator

    accelerator = Accelerator()
    accelerator.prepare(*trained(millions))
    return lambda: accelerator.load_state(str(folder / str(WRITES - 1)))


def write_accmt(folder: Path, millions: int, *, in_background: bool) -> dict[str, float]:
    """Writes checkpoints through the training's own checkpointer, at its first step."""
    import torch
    from torch.utils.data import TensorDataset

    import accmt.loop.supervise as home
    from accmt import AcceleratorModule, HyperParameters, Trainer

    figures: dict[str, float] = {}

    class Module(AcceleratorModule):
        def __init__(self) -> None:
            self.model = make_model(millions)

        def training_step(self, batch: Any) -> Any:
            return self.model(batch[0]).square().mean()

    def train(run: Any) -> Any:
        stop = loop(run)
        save, finish = run.checkpointer.save, run.checkpointer.finish
        figures.update(best_of(lambda number: timed(lambda: save(run.position.step)), finish))
        return stop

    loop, home.train = home.train, train
    samples = TensorDataset(torch.randn(2, make_model(millions)[0].in_features))
    settings = HyperParameters(1, None, 2, "AdamW", {"lr": 1e-3})
    arguments = {"dataloader_num_workers": 0, "quiet": True, "disable_model_saving": True}
    Trainer(settings, folder / "m", checkpoint_async=in_background, **arguments).fit(Module(), samples)
    return figures


def load_accmt(folder: Path, millions: int) -> Callable[[], object]:
    from accmt.checkpoint import format as contents
    from accmt.checkpoint.checkpoints import Checkpoints
    from accmt.checkpoint.extra_state import ExtraState
    from accmt.checkpoint.optimizer_state import NamedOptimizer

    model, optimizer = trained(millions)
    newest = json.loads(next((folder / "m/checkpoints").glob("*/trainer.json")).read_text())
    import torch

    schedulers = {}
    if "scheduler" in newest["parts"]:
        schedulers["scheduler"] = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    kept = ExtraState(None, model)
    parts = contents.ModelParts(model, {"optimizer": NamedOptimizer(optimizer, kept.parameters), **schedulers}, kept)

    def load() -> None:
        checkpoint = Checkpoints(folder / "m").newest()
        assert checkpoint is not None
        trainer = contents.read_trainer(checkpoint.path)
        contents.load_model(parts, contents.read_model(checkpoint.path, parts, trainer))

    return load


def flat(model: Any, optimizer: Any) -> dict[str, object]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, states = get_state_dict(model, optimizer)
    named = {
        f"optimizer.{name}.{key}": value for name, state in states["state"].items() for key, value in state.items()
    }
    return {**weights, **named}


def join_alone() -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def write_dcp(folder: Path, millions: int) -> dict[str, float]:
    """torch's distributed checkpoint in the background, with its writer of safetensors."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    join_alone()
    model, optimizer = trained(millions)
    pending: list = []

    def write(number: int) -> float:
        writer = HuggingFaceStorageWriter(str(folder / str(number)))
        return timed(lambda: pending.append(checkpoint.async_save(flat(model, optimizer), storage_writer=writer)))

    return best_of(write, lambda: pending.pop().result())


def load_dcp(folder: Path, millions: int) -> Callable[[], object]:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    join_alone()
    model, optimizer = trained(millions)
    reader = HuggingFaceStorageReader(str(folder / str(WRITES - 1)))
    return lambda: checkpoint.load(flat(model, optimizer), storage_reader=reader)


def shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def print_table(runs: dict[str, list[dict[str, float]]]) -> None:
    """Minima over the rounds (memory: the median), and ratios to bare `save_state` and to ours, synchronous."""
    best = {name: {key: min(run[key] for run in done) for key in done[0]} for name, done in runs.items() if done}
    for name, done in runs.items():
        best[name]["memory"] = statistics.median(run["memory"] for run in done)
    bare, ours = best.get("save_state"), best.get("accmt")
    print("| | blocked s | / save_state | / accmt | written s | / save_state | loaded s | / load_state | memory MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, row in best.items():
        cells = [f"{row['blocked']:.2f}", ratio(row, bare, "blocked"), ratio(row, ours, "blocked")]
        cells += [f"{row['written']:.2f}", ratio(row, bare, "written")]
        cells += [f"{row['loaded']:.2f}", ratio(row, bare, "loaded"), f"{row['memory']:.0f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def ratio(row: dict[str, float], base: dict[str, float] | None, key: str) -> str:
    return "" if base is None else f"{row[key] / base[key]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
