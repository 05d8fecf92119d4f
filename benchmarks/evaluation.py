"""An evaluation on two processes whose predictions are all gathered: samples per second, and memory of each process.

    python benchmarks/evaluation.py [--rounds 5] [--samples 100000] [--classes 1000] [--batch 256] [--only accmt,...]

Every run is a fresh pair of processes under torchrun, on gloo, with one thread each; each round runs all contestants,
each round starting with the next of them. All evaluate the same linear model over the same random data. Those that
gather compute the accuracy over all logits on the main process:

    accmt           FunctionMetric
    accelerate      Accelerator.gather_for_metrics for each batch, kept on the CPU, by hand
    transformers    Trainer.evaluate with compute_metrics

and those that do not, by torchmetrics' MulticlassAccuracy:

    accmt-torchmetrics, lightning-torchmetrics

The time is that of the evaluation alone, the memory the growth of each process's peak (VmHWM) over it. The program
exits with 1 if two contestants disagree on the accuracy. What is not installed is skipped.

    python benchmarks/evaluation.py --one [--rounds 5] [--samples 100000] [--batch 256]

evaluates a perceptron over data in memory in this process, and compares with two loops by hand under torch.no_grad()
that keep the same predictions: one over slices of the tensors, the fastest there is, and one over a DataLoader. The
time is that of the processor, which other programs disturb less. It is the minimum over rounds, which all run in turn.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
NEEDS = {
    "accmt": "torch",
    "accelerate": "accelerate",
    "transformers": "transformers",
    "accmt-torchmetrics": "torchmetrics",
    "lightning-torchmetrics": "lightning",
}
FEATURES = 16
TOLERANCE = 1e-5

Run = dict[str, Any]


def main() -> int:
    arguments = parse_arguments()
    if arguments.one:
        return in_one_process(arguments)
    if "RANK" in os.environ:
        sys.path.insert(0, str(REPOSITORY))
        Path(f"{arguments.result}-{os.environ['RANK']}").write_text(json.dumps(measure(arguments)))
        return 0
    names = [name for name in arguments.only if importlib.util.find_spec(NEEDS[name])]
    for name in set(arguments.only) - set(names):
        print(f"skipped: {name} (pip install {NEEDS[name]})")
    runs: dict[str, list[list[Run]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            runs[name].append(run(name, arguments))
            print(f"round {number + 1}, {name}: {seconds(runs[name][-1]):.2f} s", file=sys.stderr)
    print_table(runs, arguments.samples)
    found = {name: done[0][0]["accuracy"] for name, done in runs.items()}
    if max(found.values()) - min(found.values()) > TOLERANCE:
        print(f"they disagree: {found}")
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="An evaluation on two processes.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(NEEDS))
    parser.add_argument("--one", action="store_true", help="in one process")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, arguments: argparse.Namespace) -> list[Run]:
    """What both processes measured."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
        command += ["--contestant", name, "--result", f"{folder}/run", "--samples", str(arguments.samples)]
        command += ["--classes", str(arguments.classes), "--batch", str(arguments.batch)]
        ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{name} failed:\n{ran.stderr[-9000:]}")
        return [json.loads(Path(f"{folder}/run-{rank}").read_text()) for rank in range(2)]


def seconds(both: list[Run]) -> float:
    return max(each["seconds"] for each in both)


def print_table(runs: dict[str, list[list[Run]]], samples: int) -> None:
    rounds = len(next(iter(runs.values())))
    print(f"best of {rounds} rounds; memory in MB, of the main process and of the other one")
    print(f"{'':<24}{'samples/s':>11}{'/ accmt':>9}{'main':>10}{'other':>10}")
    ours = min(map(seconds, runs["accmt"])) if "accmt" in runs else None
    for name, done in runs.items():
        best = min(map(seconds, done))
        memory = [min(both[rank]["memory"] for both in done) / 1e6 for rank in range(2)]
        ratio = f"{ours / best:>9.2f}" if ours else f"{'-':>9}"
        print(f"{name:<24}{samples / best:>11,.0f}{ratio}{memory[0]:>10.0f}{memory[1]:>10.0f}")


def measure(arguments: argparse.Namespace) -> Run:
    """Evaluate once for the warm-up, on little data, and once in earnest."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    evaluate = CONTESTANTS[arguments.contestant](torch.nn.Linear(FEATURES, arguments.classes), arguments)
    evaluate(make(arguments, 4 * arguments.batch))
    data = make(arguments, arguments.samples)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size from here on
    before, begun = peak(), time.perf_counter()
    accuracy = evaluate(data)
    return {"seconds": time.perf_counter() - begun, "memory": peak() - before, "accuracy": accuracy}


def peak() -> int:
    """The largest size that this process had in main memory, in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def make(arguments: argparse.Namespace, samples: int) -> Any:
    import torch

    class Data(torch.utils.data.Dataset):
        def __init__(self) -> None:
            generator = torch.Generator().manual_seed(1)
            self.inputs = torch.randn(samples, FEATURES, generator=generator)
            self.labels = torch.randint(arguments.classes, (samples,), generator=generator)

        def __len__(self) -> int:
            return samples

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"inputs": self.inputs[index], "labels": self.labels[index]}

        def __getitems__(self, indices: list[int]) -> Any:
            return {"inputs": self.inputs[indices], "labels": self.labels[indices]}

    return Data()


def collate(batch: Any) -> Any:
    return batch


Evaluate = Callable[[Any], float]


def of_accmt(model: Any, arguments: argparse.Namespace, with_torchmetrics: bool = False) -> Evaluate:
    from torch.nn import functional

    from accmt import AcceleratorModule, FunctionMetric, TorchMetric, Trainer

    class Module(AcceleratorModule):
        def __init__(self) -> None:
            self.model = model

        def training_step(self, batch: Any) -> Any: ...

        def validation_step(self, key: str, batch: Any) -> Any:
            logits = self.model(batch["inputs"])
            loss = functional.cross_entropy(logits, batch["labels"])
            return {"loss": loss, "accuracy": (logits, batch["labels"])}

    metric: Any = FunctionMetric("accuracy", lambda logits, labels: (logits.argmax(1) == labels).double().mean(), True)
    if with_torchmetrics:
        from torchmetrics.classification import MulticlassAccuracy

        metric = TorchMetric("accuracy", MulticlassAccuracy(arguments.classes, average="micro"))
    trainer = Trainer(
        {"epochs": 1, "batch_size": arguments.batch, "optimizer": "SGD"},
        "model",
        metrics=metric,
        collate_fn=collate,
        dataloader_num_workers=0,
        destroy_after_training=False,
    )
    module = Module()
    return lambda data: trainer.evaluate(module, data)["0"]["accuracy"]


def of_accmt_torchmetrics(model: Any, arguments: argparse.Namespace) -> Evaluate:
    return of_accmt(model, arguments, with_torchmetrics=True)


def of_accelerate(model: Any, arguments: argparse.Namespace) -> Evaluate:
    import torch
    from accelerate import Accelerator
    from torch.nn import functional

    accelerator = Accelerator()
    prepared = accelerator.prepare(model)

    def evaluate(data: Any) -> float:
        loader = accelerator.prepare(torch.utils.data.DataLoader(data, arguments.batch, collate_fn=collate))
        prepared.eval()
        all_logits, all_labels, losses = [], [], []
        with torch.no_grad():
            for batch in loader:
                logits = prepared(batch["inputs"])
                losses.append(functional.cross_entropy(logits, batch["labels"]))
                logits, labels = accelerator.gather_for_metrics((logits, batch["labels"]))
                all_logits.append(logits.cpu())
                all_labels.append(labels.cpu())
        return float((torch.cat(all_logits).argmax(1) == torch.cat(all_labels)).double().mean())

    return evaluate


def of_transformers(model: Any, arguments: argparse.Namespace) -> Evaluate:
    import torch
    from torch.nn import functional
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Any, labels: Any) -> Any:
            logits = self.model(inputs)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    def compute(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}

    options = TrainingArguments(
        output_dir="out",
        per_device_eval_batch_size=arguments.batch,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(Model(), options, data_collator=collate, compute_metrics=compute)
    return lambda data: float(trainer.evaluate(data)["eval_accuracy"])


def of_lightning(model: Any, arguments: argparse.Namespace) -> Evaluate:
    import lightning
    import torch
    from torch.nn import functional
    from torchmetrics.classification import MulticlassAccuracy

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.accuracy = MulticlassAccuracy(arguments.classes, average="micro")

        def validation_step(self, batch: Any, index: int) -> None:
            logits = self.model(batch["inputs"])
            self.log("loss", functional.cross_entropy(logits, batch["labels"]), sync_dist=True)
            self.accuracy(logits, batch["labels"])
            self.log("accuracy", self.accuracy)

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    module = Module()

    def evaluate(data: Any) -> float:
        loader = torch.utils.data.DataLoader(data, arguments.batch, collate_fn=collate)
        [values] = trainer.validate(module, loader, verbose=False)
        return float(values["accuracy"])

    return evaluate


def in_one_process(arguments: argparse.Namespace) -> int:  # noqa: C901  # the peers, side by side
    import torch
    from torch.nn import functional

    sys.path.insert(0, str(REPOSITORY))
    from accmt import AcceleratorModule, FunctionMetric, Trainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    nn, size = torch.nn, arguments.batch
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    inputs, labels = torch.randn(arguments.samples, 64), torch.randint(10, (arguments.samples,))
    data = torch.utils.data.TensorDataset(inputs, labels)

    class Module(AcceleratorModule):
        def __init__(self) -> None:
            self.model = net

        def training_step(self, batch: Any) -> Any: ...

        def validation_step(self, key: str, batch: Any) -> Any:
            logits = self.model(batch[0])
            return {"loss": functional.cross_entropy(logits, batch[1]), "accuracy": (logits.argmax(1), batch[1])}

    def ours(function: Any, **options: Any) -> Callable[[], tuple[float, float]]:
        metric = FunctionMetric("accuracy", function, greater_is_better=True, **options)
        hps = {"epochs": 1, "batch_size": size, "optimizer": "SGD"}
        trainer, module = Trainer(hps, "model", metrics=metric, destroy_after_training=False), Module()

        def evaluate() -> tuple[float, float]:
            values = trainer.evaluate(module, data)["0"]
            return values["valid_loss"], values["accuracy"]

        return evaluate

    def by_hand(batches: Iterable[Any]) -> tuple[float, float]:
        net.eval()
        total, guesses, true = torch.zeros((), dtype=torch.float64), [], []
        with torch.no_grad():
            for x, y in batches:
                logits = net(x)
                total += functional.cross_entropy(logits, y) * len(y)
                guesses.append(logits.argmax(1))
                true.append(y)
        accuracy = (torch.cat(guesses) == torch.cat(true)).double().mean()
        return float(total / arguments.samples), float(accuracy)

    contestants = {
        "by hand, slices": lambda: by_hand(zip(inputs.split(size), labels.split(size), strict=True)),
        "by hand, DataLoader": lambda: by_hand(torch.utils.data.DataLoader(data, size)),
        "accmt": ours(lambda guesses, true: (guesses == true).double().mean()),
        "accmt, per_sample": ours(lambda guesses, true: guesses == true, per_sample=True),
    }
    found = torch.tensor([evaluate() for evaluate in contestants.values()], dtype=torch.float64)
    best = dict.fromkeys(contestants, float("inf"))
    for number in range(arguments.rounds * len(contestants)):
        for name in [*contestants][number % len(contestants) :] + [*contestants][: number % len(contestants)]:
            begun = time.process_time()
            contestants[name]()
            best[name] = min(best[name], time.process_time() - begun)
    print(f"{'':<24}{'ms':>9}{'/ slices':>10}{'/ DataLoader':>14}")
    slices, loader, *_ = best.values()
    for name, took in best.items():
        print(f"{name:<24}{took * 1e3:>9.1f}{took / slices:>10.2f}{took / loader:>14.2f}")
    return int(bool((found.amax(0) - found.amin(0) > TOLERANCE).any()))


CONTESTANTS: dict[str, Callable[[Any, argparse.Namespace], Evaluate]] = {
    "accmt": of_accmt,
    "accelerate": of_accelerate,
    "transformers": of_transformers,
    "accmt-torchmetrics": of_accmt_torchmetrics,
    "lightning-torchmetrics": of_lightning,
}

if __name__ == "__main__":
    sys.exit(main())
