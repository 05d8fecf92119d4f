"""Runs one contestant in this process: `python -m peers NAME --steps N --folder DIR [--no-bar]`.

The figures go to `DIR/run.json`, since the libraries write to both standard streams.
"""

import argparse
import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch

from . import PEERS, Run
from .task import Task


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers", description="Run one contestant in this process.")
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--no-bar", dest="bar", action="store_false")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    import_module("torch._dynamo")  # or the first optimizer does, a second of import in some contestants' fit
    contestant = import_module(f"peers.{PEERS[arguments.name].file}")
    run: Run = contestant.train(Task(steps=arguments.steps, folder=arguments.folder, bar=arguments.bar))
    (arguments.folder / "run.json").write_text(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
