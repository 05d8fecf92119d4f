"""What a tracker adds to a training step: none, an MLflow server that answers, one that is stopped, one that is down.

    python benchmarks/trackers.py [--rounds 20] [--steps 1500] [--log-every 10] [--width 128] [--json FILE]

One process with one thread on the CPU trains a small perceptron again and again; each round trains once in every case,
each round starting with the next of them. Three values are logged at each logging step. The time is that of the steps
after the first tenth, without the start and the end of the training: that of the clock, and that which the thread of
the loop had a processor, to which other work on the machine adds less. In the case `stopped` the server, a real one in
processes of its own, gets SIGSTOP at the beginning of that time, so that its connections hang.

After each training what waits is sent by `accmt sync` where the server is up again, and it is counted whether every
value is in the server's store, or waits in the outbox, once; the program exits with 1 if not.
"""

import argparse
import contextlib
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CASES = ("none", "up", "stopped", "down")
KINDS = ("clock", "thread")
EXPERIMENT = "benchmark"
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

Figures = dict[str, float]


def main() -> int:
    arguments = parse_arguments()
    os.environ |= VARIABLES
    sys.path.insert(0, str(REPOSITORY))
    runs: dict[str, list[Figures]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.wait()
            measure("none", arguments, server, Path(folder) / "first")  # pays for all that is done once in a process
            for number in range(arguments.rounds):
                turn = number % len(CASES)
                for name in CASES[turn:] + CASES[:turn]:
                    runs[name].append(measure(name, arguments, server, Path(folder) / f"{name}-{number}"))
                print(f"round {number + 1}: {shown(runs)}", file=sys.stderr)
        finally:
            server.end()
    print_table(runs)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(runs, indent=1))
    wrong = [f"{name}: {done}" for name in CASES for done in runs[name] if done["values"] != done["expected"]]
    for line in wrong:
        print(f"wrong: {line}")
    return 1 if wrong else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of a training")
    parser.add_argument("--log-every", type=int, default=10, help="steps between two logs")
    parser.add_argument("--width", type=int, default=128, help="of the perceptron's two hidden layers")
    parser.add_argument("--json", help="write all figures to this file")
    return parser.parse_args()


class Server:
    """A real MLflow server, and the processes that it starts."""

    def __init__(self, folder: Path) -> None:
        self.address = free_address()
        port = self.address.split(":")[1]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"]
        with (folder / "output.txt").open("w") as output:
            self.process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)

    def wait(self) -> None:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{self.address}/health", timeout=5):
                return
            time.sleep(0.5)
        sys.exit("the server does not answer")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        self.go_on()
        os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def measure(name: str, arguments: argparse.Namespace, server: Server, folder: Path) -> Figures:
    """Train once, and count what became of the values."""
    address = {"none": None, "down": free_address()}.get(name, server.address)
    try:
        figures = train(arguments, address, folder, server.stop if name == "stopped" else lambda: None)
    finally:
        server.go_on()
    for thread in threading.enumerate():
        if thread.name.startswith("tracker"):
            thread.join()
    expected = 0 if address is None else 3 * (arguments.steps // arguments.log_every)
    return {
        **figures,
        "values": values(folder, server.address if address == server.address else None),
        "expected": expected,
    }


def train(arguments: argparse.Namespace, address: str | None, folder: Path, at_first: Any) -> Figures:
    """Train once. `at_first` is called when the time begins."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    from accmt import AcceleratorModule, Callback, HyperParameters, Monitor, Trainer
    from accmt.tracking import background
    from accmt.tracking.sending import SendingLimits

    torch.set_num_threads(1)
    background.LIMITS = SendingLimits(end=0.5)  # what follows the last step is not measured
    width, first = arguments.width, arguments.steps // 10

    class Digits(AcceleratorModule):
        def __init__(self) -> None:
            layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
            self.model = nn.Sequential(*layers)

        def training_step(self, batch: Any) -> Any:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    class Clock(Callback):
        count = 0

        def on_after_optimizer_step(self, optimizer: Any) -> None:
            self.count += 1
            if self.count == first:
                at_first()
                self.begun = time.perf_counter(), time.thread_time()
            elif self.count == arguments.steps:
                self.ended = time.perf_counter(), time.thread_time()

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64), torch.randint(0, 10, (3200,)))
    clock = Clock()
    trainer = Trainer(
        HyperParameters(arguments.steps, arguments.steps, 32, "AdamW", {"lr": 1e-3}),
        folder,
        track_name=EXPERIMENT,
        enable_checkpointing=False,
        disable_model_saving=True,
        log_with=None if address is None else "mlflow",
        logging_dir="logs" if address is None else address,
        log_every=arguments.log_every,
        monitor=Monitor(learning_rate=True),
        dataloader_num_workers=0,
        callback=clock,
        quiet=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(Digits(), data)
    times = zip(KINDS, clock.begun, clock.ended, strict=True)
    return {kind: (ended - begun) / (arguments.steps - first) for kind, begun, ended in times}


def values(folder: Path, address: str | None) -> int:
    """How many values of a training wait, and how many the newest run has, if there is a server."""
    from accmt.cli.main import main as accmt

    if address is None:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            accmt(["sync", str(folder)])
        counts = re.findall(r"still waiting: ([\d,]+) value", told.getvalue())
        return sum(int(count.replace(",", "")) for count in counts)
    from mlflow import MlflowClient

    with contextlib.redirect_stdout(io.StringIO()):
        accmt(["sync", str(folder), "--to", address])
    client = MlflowClient(tracking_uri=f"http://{address}")
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    [newest] = client.search_runs([experiment], max_results=1, order_by=["start_time DESC"])
    names = ("train_loss", "epoch", "learning_rate")
    return sum(len(client.get_metric_history(newest.info.run_id, name)) for name in names)


def shown(runs: dict[str, list[Figures]]) -> str:
    return ", ".join(f"{name} {runs[name][-1]['clock'] * 1e6:.0f} µs" for name in CASES)


def print_table(runs: dict[str, list[Figures]]) -> None:
    print(f"µs a step: minima of {len(runs['none'])} rounds, their ratios to those without a tracker,")
    print("and the medians of the ratios within each round")
    print(f"{'tracker':<10}" + "".join(f"{kind:>10}{'/ none':>8}{'median':>8}" for kind in KINDS))
    for name in CASES:
        line = f"{name:<10}"
        for kind in KINDS:
            times, without = ([done[kind] for done in runs[case]] for case in (name, "none"))
            middle = statistics.median(time / other for time, other in zip(times, without, strict=True))
            line += f"{min(times) * 1e6:>10.0f}{min(times) / min(without):>8.3f}{middle:>8.3f}"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
