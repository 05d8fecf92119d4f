"""`accmt strats`: list the strategies of `accmt launch`."""

from __future__ import annotations

import argparse

from accmt.cli.launch.hardware import gpus, installed
from accmt.cli.launch.strategies import PRECISIONS, STRATEGIES, Strategy
from accmt.cli.output import write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = "List the strategies of accmt launch: what each one is, when to use it, and what it needs."
    parser.epilog = "examples:\n  accmt strats\n"


def run(options: argparse.Namespace) -> int:
    """Print the strategies, and what this machine has for them."""
    there, deepspeed = gpus(), installed("deepspeed")
    rows = [("strategy", "what it is", "take it when", "needs")]
    rows += [(each.name, each.what, each.when, _needs(each, deepspeed)) for each in STRATEGIES]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        write("  ".join(cells).rstrip())
    ends = ", ".join(f"-{end}" for end in PRECISIONS)
    seen = {0: "no NVIDIA GPU", 1: "1 NVIDIA GPU"}.get(there, f"{there} NVIDIA GPUs")
    write(
        f"\nWith {ends} behind its name, as in fsdp2-bf16, a strategy trains in this precision where the script names\n"
        f"none. This machine has {seen}."
    )
    return 0


def _needs(strategy: Strategy, deepspeed: str | None) -> str:
    needs = "GPUs, or --cpu" if strategy.on_cpus else "GPUs"
    if strategy.needs_deepspeed:
        found = f"{deepspeed} is installed" if deepspeed else "not installed: pip install deepspeed"
        needs += f"; DeepSpeed ({found})"
    return needs
