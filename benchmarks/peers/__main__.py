"""Runs one contestant in this process: `python -m peers NAME --folder DIR --steps N [--no-bar]`.

With `--data FILE` instead of `--steps`, it does the training of `benchmarks/whole.py`.

The figures go to `DIR/run.json`, since the libraries write to both standard streams.
"""

import argparse
import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import monotonic

import torch

from . import PEERS, Run
from .task import Task


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers", description="Run one contestant in this process.")
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--no-bar", dest="bar", action="store_false")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    file = PEERS[arguments.name].file
    if arguments.data is not None:
        contestant, whole = import_module(f"peers.whole.{file}"), import_module("peers.whole")
        result = whole.run(contestant.train, arguments.data, arguments.folder, imported=monotonic())
    else:
        contestant = import_module(f"peers.{file}")
        run: Run = contestant.train(Task(steps=arguments.steps, folder=arguments.folder, bar=arguments.bar))
        result = asdict(run)
    (arguments.folder / "run.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
