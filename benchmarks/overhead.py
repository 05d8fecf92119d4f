"""What a library adds to each training step: the same small training by each of them, in turn.

    python benchmarks/overhead.py [--rounds 10] [--only torch,accmt] [--steps 4000] [--no-bar] [--json FILE]

Every run is a fresh process with one thread on the CPU; every round runs all contestants, each round starting with
the next of them. Standard output and error of a run are a pseudo terminal, so that each library shows its default
progress display, as it does for a person; `--no-bar` switches all of them off. The time is that from the first
training step to the return of the fit or loop; `fit` adds the set-up that a library does inside it.

The program then checks that all took the same number of optimizer steps, clipped the first gradient to the norm
asked for and ended with about the same loss. It exits with 1 if they did not, or if a contestant failed. What is
not installed is skipped. It needs a POSIX system.
"""

import argparse
import fcntl
import importlib.metadata
import json
import os
import platform
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from peers import CLIP_NORM, EPOCHS, PEERS, Peer, Run

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
BASELINES = ("torch", "torch-fast", "accelerate")
LOSS_TOLERANCE = 0.25  # relative; the order of the samples, which differs between libraries, moves it by a tenth
NORM_TOLERANCE = 1e-3
TERMINAL_ROWS, TERMINAL_COLUMNS = 24, 100
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TERM": "xterm-256color",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """One contestant over all rounds; seconds, and ratios of minima to those of the baselines."""

    name: str
    minimum: float
    median: float
    fit_minimum: float
    steps_per_second: float
    ratios: dict[str, float]  # by baseline that ran


class Timed(Protocol):
    """What one contestant did in one process."""

    @property
    def seconds(self) -> float: ...


_Done = TypeVar("_Done", bound=Timed)


class ContestantFailed(Exception):
    """A contestant's process ended without a result; the text is the end of what it printed."""


def main() -> int:
    arguments = parse_arguments()
    peers = installed_peers(arguments.only)
    print_versions(peers)
    runs, failures = run_rounds(peers, arguments.rounds, partial(run_once, steps=arguments.steps, bar=arguments.bar))
    runs = {name: done for name, done in runs.items() if name not in failures}
    summaries = summarize(runs, arguments.steps)
    print_table(summaries)
    problems = failures | verify(runs, arguments.steps)
    for name, problem in problems.items():
        print(f"\n{name}: {problem}")
    if arguments.json:
        write_json(arguments, peers, runs, summaries, problems)
    return 1 if problems else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a library adds to each training step.")
    parser.add_argument("--rounds", type=int, default=10, help="runs of each contestant (default: 10)")
    parser.add_argument("--only", type=names, default=list(PEERS), help=f"of {','.join(PEERS)} (default: all)")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps of a run (default: 4000)")
    parser.add_argument("--no-bar", dest="bar", action="store_false", help="switch all progress displays off")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the summary to FILE")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.steps < EPOCHS or arguments.steps % EPOCHS:
        parser.error(f"--steps must be a positive multiple of {EPOCHS}, the epochs of a run")
    return arguments


def names(text: str, known: Iterable[str] = PEERS) -> list[str]:
    """The contestants named in `text`, separated by commas; for argparse."""
    chosen = [name.strip() for name in text.split(",")]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen


def installed_peers(chosen: Sequence[str]) -> list[Peer]:
    """Those of `chosen` that can run here, with a line printed for each that cannot."""
    sys.path.append(str(REPOSITORY))
    peers = [PEERS[name] for name in chosen]
    for peer in peers:
        if not peer.installed:
            print(f"skipped: {peer.name} (pip install {peer.distribution})")
    return [peer for peer in peers if peer.installed]


def print_versions(peers: Sequence[Peer]) -> None:
    print(f"python {platform.python_version()}, torch {importlib.metadata.version('torch')}, {platform.platform()}")
    for peer in peers:
        print(f"  {peer.name}: {peer.version}")


def run_rounds(
    peers: Sequence[Peer], rounds: int, run_once: Callable[[Peer], _Done]
) -> tuple[dict[str, list[_Done]], dict[str, str]]:
    """All runs by contestant, and what went wrong by contestant; one that failed is not run again."""
    runs: dict[str, list[_Done]] = {peer.name: [] for peer in peers}
    failures: dict[str, str] = {}
    for round_number in range(rounds):
        first = round_number % len(peers) if peers else 0
        for peer in [*peers[first:], *peers[:first]]:
            if peer.name in failures:
                continue
            try:
                run = run_once(peer)
            except ContestantFailed as failure:
                failures[peer.name] = f"failed; it ended with:\n{failure}"
                continue
            runs[peer.name].append(run)
            print(f"round {round_number + 1}: {peer.name:<14}{run.seconds:8.3f} s", flush=True)
    return runs, failures


def run_once(peer: Peer, *, steps: int, bar: bool) -> Run:
    """One run of `peer` in a process of its own; raises ContestantFailed."""
    with tempfile.TemporaryDirectory() as folder:
        run_peer(peer, Path(folder), ["--steps", str(steps)], bar=bar)
        return Run(**json.loads(Path(folder, "run.json").read_text()))


def run_peer(peer: Peer, folder: Path, options: Sequence[str], *, bar: bool) -> None:
    """Runs `peer` in a process of its own, which leaves `run.json` in `folder`; raises ContestantFailed."""
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)}
    if not bar:
        environment["TQDM_DISABLE"] = "1"
    command = [sys.executable, "-m", "peers", peer.name, "--folder", str(folder), *options]
    status, output = run_on_terminal(command if bar else [*command, "--no-bar"], environment)
    if status or not (folder / "run.json").exists():
        raise ContestantFailed(output or f"(no output, exit status {status})")


def run_on_terminal(command: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Runs `command` on a pseudo terminal: its exit status and the end of what it printed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", TERMINAL_ROWS, TERMINAL_COLUMNS, 0, 0))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment, cwd=BENCHMARKS
    )
    os.close(theirs)
    output = b""
    while chunk := read_terminal(ours):
        output = (output + chunk)[-2000:]
    os.close(ours)
    return process.wait(), output.decode(errors="replace").replace("\r\n", "\n").strip()


def read_terminal(descriptor: int) -> bytes:
    """What was written meanwhile; nothing once the other side is closed, which Linux reports as an error."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""


def summarize(runs: dict[str, list[Run]], steps: int) -> list[Summary]:
    minima = {name: min(run.seconds for run in done) for name, done in runs.items() if done}
    return [
        Summary(
            name=name,
            minimum=minimum,
            median=statistics.median(run.seconds for run in runs[name]),
            fit_minimum=min(run.fit_seconds for run in runs[name]),
            steps_per_second=steps / minimum,
            ratios={baseline: minimum / minima[baseline] for baseline in BASELINES if baseline in minima},
        )
        for name, minimum in minima.items()
    ]


def print_table(summaries: Sequence[Summary]) -> None:
    print("\nseconds from the first step to the end of the fit; fit: seconds of the whole fit; ratios of minima")
    titles = [f"/ {baseline}" for baseline in BASELINES]
    print(f"{'':<14}{'min':>8}{'median':>8}{'fit min':>9}{'steps/s':>9}  {'  '.join(titles)}")
    for summary in summaries:
        ratios = [f"{summary.ratios[baseline]:.3f}" if baseline in summary.ratios else "-" for baseline in BASELINES]
        print(
            f"{summary.name:<14}{summary.minimum:8.3f}{summary.median:8.3f}{summary.fit_minimum:9.3f}"
            f"{summary.steps_per_second:9.0f}  "
            + "  ".join(f"{ratio:>{len(title)}}" for ratio, title in zip(ratios, titles, strict=True))
        )


def verify(runs: dict[str, list[Run]], steps: int) -> dict[str, str]:
    """What a contestant did otherwise than the others, by contestant; empty if all trained alike."""
    losses = [run.final_loss for done in runs.values() for run in done]
    if not losses:
        return {}
    loss = statistics.median(losses)
    problems = {}
    for name, done in runs.items():
        for run in done:
            if run.optimizer_steps != steps:
                problems[name] = f"took {run.optimizer_steps} optimizer steps instead of {steps}."
            elif not abs(run.first_gradient_norm - CLIP_NORM) <= NORM_TOLERANCE:
                problems[name] = f"clipped the first gradient to {run.first_gradient_norm:.4f} instead of {CLIP_NORM}."
            elif not abs(run.final_loss - loss) <= LOSS_TOLERANCE * loss:
                problems[name] = f"ended with a loss of {run.final_loss:.4f}, the others with about {loss:.4f}."
    if not problems:
        print(
            f"\nall alike: {steps} optimizer steps, first gradient clipped to {CLIP_NORM},"
            f" final loss {min(losses):.4f} to {max(losses):.4f}"
        )
    return problems


def write_json(
    arguments: argparse.Namespace,
    peers: Sequence[Peer],
    runs: dict[str, list[Run]],
    summaries: Sequence[Summary],
    problems: dict[str, str],
) -> None:
    report = {
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "bar": arguments.bar,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {peer.name: peer.version for peer in peers},
        "runs": {name: [asdict(run) for run in done] for name, done in runs.items()},
        "summary": [asdict(summary) for summary in summaries],
        "problems": problems,
    }
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
