"""What a tracker adds to a training step: none, an MLflow server that answers, one that is stopped, one that is down.

    python benchmarks/trackers.py [--rounds 7] [--steps 6000] [--log-every 10] [--width 128] [--json FILE]

Every run is a fresh process with one thread on the CPU, which trains a small perceptron; each round runs every case
once, each round starting with the next of them. Three values are logged at each logging step. The time is that of the
steps after the first tenth, without the start and the end of the training: that of the clock, and that which the thread
of the loop had a processor, where other work on the machine adds less. In the case `stopped` the server, a real one of
its own process, gets SIGSTOP at the beginning of that time, so that its connections hang. Afterwards it is looked
whether every value is in the server's store, or waits in the outbox, once; the program exits with 1 if not.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CASES = ("none", "up", "stopped", "down")
EXPERIMENT = "benchmark"


def main() -> int:
    arguments = parse_arguments()
    if arguments.case:
        print(json.dumps(measure(arguments)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.wait()
            for number in range(arguments.rounds):
                turn = number % len(CASES)
                for name in CASES[turn:] + CASES[:turn]:
                    runs[name].append(run(name, arguments, server))
                    print(f"round {number + 1}, {name}: {runs[name][-1]['step'] * 1e6:.0f} µs", file=sys.stderr)
        finally:
            server.end()
    print_table(runs)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(runs, indent=1))
    wrong = [
        f"{name}: {done['values']:.0f} values"
        for name in CASES
        for done in runs[name]
        if done["values"] != done["expected"]
    ]
    for line in wrong:
        print(f"wrong: {line}")
    return 1 if wrong else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps of a run")
    parser.add_argument("--log-every", type=int, default=10, help="steps between two logs")
    parser.add_argument("--width", type=int, default=128, help="of the perceptron's two hidden layers")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--group", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


class Server:
    """A real MLflow server, and the processes that it starts."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            self.address.split(":")[1],
        ]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"]
        variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (folder / "output.txt").open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=variables, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self) -> None:
        for _ in range(240):
            with suppress(OSError), urllib.request.urlopen(f"http://{self.address}/health", timeout=5):
                return
            time.sleep(0.5)
        sys.exit("the server does not answer")

    def go_on(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        for number in (signal.SIGCONT, signal.SIGTERM):
            os.killpg(self.process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run(name: str, arguments: argparse.Namespace, server: Server) -> dict[str, float]:
    """One run in a process of its own, and how many values there are of it afterwards."""
    address = f"127.0.0.1:{free_port()}" if name == "down" else server.address
    command = [sys.executable, __file__, "--case", name, "--address", address, "--group", str(server.process.pid)]
    for option in ("steps", "log_every", "width"):
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    environment |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run([*command, "--folder", folder], capture_output=True, text=True, env=environment)
        server.go_on()
        if ran.returncode:
            sys.exit(f"{name} failed:\n{ran.stderr[-3000:]}")
        figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
        model, there = Path(folder) / "model", 0
        if name in ("up", "stopped"):
            sync = [sys.executable, "-m", "accmt.cli.main", "sync", str(model)]
            subprocess.run(sync, env=environment, check=True, stdout=subprocess.DEVNULL)
            there = count(server.address)
        return {**figures, "values": there + waiting(model)}


def waiting(model: Path) -> int:
    """How many values wait in the outbox."""
    sys.path.append(str(REPOSITORY))
    from accmt.tracking.outbox import waiting_in

    return sum(left.values for left in waiting_in(model)[0].values())


def count(address: str) -> int:
    """How many values the newest run has."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"http://{address}")
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    [newest] = client.search_runs([experiment], max_results=1, order_by=["start_time DESC"])
    names = ("train_loss", "epoch", "learning_rate")
    return sum(len(client.get_metric_history(newest.info.run_id, name)) for name in names)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Train in this process."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    from accmt import AcceleratorModule, Callback, HyperParameters, Monitor, Trainer
    from accmt.tracking import background

    torch.set_num_threads(1)
    background.LIMITS = background.Limits(end=2.0)  # what follows the last step is not measured
    width, first = arguments.width, arguments.steps // 10

    class Digits(AcceleratorModule):
        def __init__(self) -> None:
            self.model = nn.Sequential(
                nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
            )

        def training_step(self, batch: Any) -> Any:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    class Clock(Callback):
        count = 0

        def on_after_optimizer_step(self, optimizer: Any) -> None:
            self.count += 1
            if self.count == first:
                if arguments.case == "stopped":
                    os.killpg(arguments.group, signal.SIGSTOP)
                self.begun = time.perf_counter(), time.thread_time()
            elif self.count == arguments.steps:
                self.ended = time.perf_counter(), time.thread_time()

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 10, (3200,)))
    clock = Clock()
    trainer = Trainer(
        HyperParameters(arguments.steps, arguments.steps, 32, "AdamW", {"lr": 1e-3}),
        Path(arguments.folder) / "model",
        track_name=EXPERIMENT,
        enable_checkpointing=False,
        disable_model_saving=True,
        log_with=None if arguments.case == "none" else "mlflow",
        logging_dir=arguments.address if arguments.case != "none" else "logs",
        log_every=arguments.log_every,
        monitor=Monitor(learning_rate=True),
        dataloader_num_workers=0,
        callback=clock,
        quiet=True,
    )
    trainer.fit(Digits(), data)
    step, busy = (
        (ended - begun) / (arguments.steps - first) for begun, ended in zip(clock.begun, clock.ended, strict=True)
    )
    expected = 0 if arguments.case == "none" else 3 * (arguments.steps // arguments.log_every)
    return {"step": step, "busy": busy, "expected": expected}


def print_table(runs: dict[str, list[dict[str, float]]]) -> None:
    minima = {kind: {name: min(done[kind] for done in runs[name]) for name in CASES} for kind in ("step", "busy")}
    print(f"minima of {len(runs['none'])} rounds, in µs a step, and their ratios to those without a tracker")
    print(f"{'tracker':<10}{'clock':>8}{'/ none':>8}{'thread':>10}{'/ none':>8}")
    for name in CASES:
        clock, busy = ((of[name] * 1e6, of[name] / of["none"]) for of in minima.values())
        print(f"{name:<10}{clock[0]:>8.0f}{clock[1]:>8.3f}{busy[0]:>10.0f}{busy[1]:>8.3f}")


if __name__ == "__main__":
    sys.exit(main())
