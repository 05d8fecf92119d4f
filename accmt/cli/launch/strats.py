"""Strategies for training on several processes, and `accmt strats`, which lists them.

A strategy is a file in `strategies/`: a configuration of Accelerate, headed by what it is and when to use it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accmt.cli.arguments import UsageError
from accmt.cli.launch.hardware import installed, visible_gpus
from accmt.cli.output import write
from accmt.config.errors import did_you_mean

# Suffix of a strategy's name -> Accelerate's name of the precision.
PRECISIONS = {"-bf16": "bf16", "-fp16": "fp16", "-fp32": "no"}
_FOLDER = Path(__file__).with_name("strategies")


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy: what it is, and when to use it."""

    name: str
    what: str
    when: str


def strategies() -> list[Strategy]:
    """Return all strategies, by name."""
    found = []
    for path in sorted(_FOLDER.glob("*.yaml"), key=lambda path: path.stem):
        what, when, *_ = path.read_text(encoding="utf-8").splitlines()
        found.append(Strategy(path.stem, what.removeprefix("# "), when.removeprefix("# Use it when ")))
    return found


def configuration_of(name: str) -> dict[str, Any]:
    """Return the configuration of a strategy, such as `fsdp2` or `ddp-bf16`, with the precision of its name.

    Raises:
        UsageError: There is no such strategy.
    """
    from accmt.config.document import read_document  # imports yaml, which most commands do not need

    bases = [each.name for each in strategies()]
    parts = {base + end: (base, end) for base in bases for end in ("", *PRECISIONS)}
    if name not in parts:
        there = f"There are {', '.join(bases)}; each may end with {', '.join(PRECISIONS)}"
        raise UsageError(f"--strat: there is no strategy '{name}'{did_you_mean(name, parts)} {there}")
    base, end = parts[name]
    return {**read_document(_FOLDER / f"{base}.yaml"), "mixed_precision": PRECISIONS.get(end, "no")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = "List the strategies of accmt launch: what each one is, when to use it, and what it needs."
    parser.epilog = "examples:\n  accmt strats\n"


def run(options: argparse.Namespace) -> int:
    """Print the strategies, and what this machine has for them."""
    count, deepspeed = len(visible_gpus()), installed("deepspeed")
    rows = [("strategy", "what it is", "use it when", "needs")]
    rows += [(each.name, each.what, each.when, _needs(each.name, deepspeed)) for each in strategies()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        write("  ".join(map(str.ljust, row, widths)).rstrip())
    seen = {0: "no NVIDIA GPU", 1: "1 NVIDIA GPU"}.get(count, f"{count} NVIDIA GPUs")
    write(
        f"\nWith {', '.join(PRECISIONS)} behind its name, as in fsdp2-bf16, a strategy trains in this precision\n"
        f"where the script names none. This machine has {seen}."
    )
    return 0


def _needs(name: str, deepspeed: str | None) -> str:
    if not name.startswith("deepspeed"):
        return "GPUs, or --cpu" if name == "ddp" else "GPUs"
    found = f"{deepspeed} is installed" if deepspeed else "not installed: pip install deepspeed"
    return f"GPUs, or --cpu; DeepSpeed ({found})"
