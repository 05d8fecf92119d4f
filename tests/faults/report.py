"""Writer of the page with the results of the fault tests: `report.py COUNTS PAGE`, from the files of `--counts`.

A group is a file of tests: its docstring is its title and defines "survived".
"""

from __future__ import annotations

import ast
import json
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_ORDER = [
    "test_kills",
    "test_steps",
    "test_signals",
    "test_processes",
    "test_damage",
    "test_disk",
    "test_hostile",
    "test_hostile_models",
    "test_folders",
    "test_configurations",
    "test_input",
    "test_trackers",
]
_PACKAGES = ("torch", "accelerate", "safetensors", "numpy")
_HEAD = """\
# Results of the fault tests

<!-- Written by `bash scripts/faults.sh`, which tries each case as often as shown here; other runs try less. -->

Each row is a case of [tests/faults](../tests/faults). *Tries* says how often it was tried, with random moments, places
and values drawn from a seed. If a try is meant to hit a certain moment, *hits* counts those that did. Processes really
get signals, disks are really full, and trackers are really down. The text above each table defines *survived*.

"""


def page(counts: Iterable[dict[str, Any]], versions: Iterable[str]) -> str:
    """The page, in Markdown."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for count in sorted(counts, key=lambda count: (_place(count["module"]), count["order"])):
        groups.setdefault(count["module"], []).append(count)
    every = [count for group in groups.values() for count in group]
    tries, lost = (sum(count[column] for count in every) for column in ("tries", "lost"))
    total = f"{len(every)} cases, {tries:,} tries, {lost:,} lost. Made with {', '.join(versions)}.\n"
    return _HEAD + total + "".join(map(_group, groups, groups.values()))


def _place(module: str) -> tuple[int, str]:
    return (_ORDER.index(module) if module in _ORDER else len(_ORDER), module)


def _group(module: str, counts: list[dict[str, Any]]) -> str:
    title, _, text = (ast.get_docstring(ast.parse((HERE / f"{module}.py").read_text())) or module).partition("\n")
    rows = "".join(map(_row, counts))
    head = "| case | tries | hits | survived | lost |\n| --- | --: | --: | --: | --: |\n"
    return f"\n## {title}\n{text.rstrip()}\n\n{head}{rows}"


def _row(count: dict[str, Any]) -> str:
    hits = "" if count["hits"] is None else count["hits"]
    cut = "" if count["complete"] else " (not tried to the end)"
    return f"| {count['case']}{cut} | {count['tries']} | {hits} | {count['survived']} | {count['lost']} |\n"


def versions() -> list[str]:
    """What it was tried with."""
    packages = [f"{name} {version(name)}" for name in _PACKAGES]
    return [f"Python {platform.python_version()}", *packages]


if __name__ == "__main__":
    found = [json.loads(path.read_text()) for path in Path(sys.argv[1]).glob("*.json")]
    Path(sys.argv[2]).write_text(page(found, versions()), encoding="utf-8")
