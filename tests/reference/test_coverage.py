"""Every row of docs/reference.json has tests that prove its effect, and docs/reference-coverage.md lists them.

A row is a class or function, one of its arguments, or an attribute. `coverage.toml` names the tests; the page is made
of both. `WRITE_REFERENCE_COVERAGE=1` makes it anew instead of comparing it.
"""

import ast
import json
import os
import re
import tomllib
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "reference-coverage.md"
REFERENCE = json.loads((ROOT / "docs" / "reference.json").read_text())
COVERAGE = tomllib.loads((Path(__file__).parent / "coverage.toml").read_text())
ITSELF = "itself"
WRITE = "WRITE_REFERENCE_COVERAGE"
COMMAND = f"{WRITE}=1 python -m pytest tests/reference/test_coverage.py"


class Row(NamedTuple):
    """What a thing is called, and one of its arguments or attributes, or the thing itself."""

    path: str
    name: str
    default: str | None = None

    def __str__(self):
        return self.path if self.name == ITSELF else f"{self.path}({self.name})"


def rows():
    for path, parameters in REFERENCE["signatures"].items():
        yield Row(path, ITSELF)
        yield from (Row(path, name, default) for name, default in parameters.items() if name != "*")
        for name, default in REFERENCE["attributes"].get(path, {}).items():
            if name not in parameters:
                yield Row(path, name, default)


ROWS = list(rows())


def fits(pattern, path):
    """Whether a key with stars is for this path: a star is one name of it."""
    patterns, parts = pattern.split("."), path.split(".")
    return len(patterns) == len(parts) and all(map(fnmatchcase, parts, patterns))


def keys_of(row):
    """The table and the key of `coverage.toml` that are for a row: its own, or else those with stars."""
    tables = [row.path] if row.path in COVERAGE else [table for table in COVERAGE if fits(table, row.path)]
    for table in tables:
        for key in (row.name, "*"):
            if key in COVERAGE[table] and (key != "*" or row.name != ITSELF):
                return table, key
    return None


def proofs_of(row):
    keys = keys_of(row)
    return [] if keys is None else COVERAGE[keys[0]][keys[1]]


@cache
def functions_in(name):
    """The tests of a file, as pytest names them, with how often each is defined and what stands above it."""
    path = ROOT / name
    found = {}
    if not path.is_file():
        return found
    for node in ast.parse(path.read_text()).body:
        is_class = isinstance(node, ast.ClassDef) and node.name.startswith("Test")
        inner, prefix = (node.body, f"{node.name}::") if is_class else ([node], "")
        for function in inner:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                found.setdefault(prefix + function.name, []).append([ast.unparse(d) for d in function.decorator_list])
    return found


def problem_of(test):
    """Why a test that is named cannot prove anything; None if it can."""
    name, _, function = test.partition("::")
    if not name.startswith("tests/") or not Path(name).name.startswith("test_"):
        return "is in no file of tests"
    if not (ROOT / name).is_file():
        return "is in a file that there is not"
    definitions = functions_in(name).get(function, [])
    if len(definitions) != 1:
        return f"is defined {len(definitions)} times"
    never = [line for line in definitions[0] if re.match(r"pytest\.mark\.(skip|xfail)(\(|$)", line)]
    return f"never has to hold: @{never[0]}" if never else None


@pytest.mark.parametrize("path", REFERENCE["signatures"])
def test_every_row_has_a_test(path):
    missing = [str(row) for row in ROWS if row.path == path and not proofs_of(row)]
    assert missing == [], "name tests for them in tests/reference/coverage.toml"


def test_attributes_are_of_things_that_have_a_signature():
    assert REFERENCE["attributes"].keys() <= REFERENCE["signatures"].keys()


def test_every_entry_is_for_a_row():
    used = {keys_of(row) for row in ROWS}
    unused = [(table, key) for table, entries in COVERAGE.items() for key in entries if (table, key) not in used]
    assert unused == [], "docs/reference.json has no such row"


@pytest.mark.parametrize("test", sorted({test for row in ROWS for test in proofs_of(row)}))
def test_every_named_test_exists(test):
    assert problem_of(test) is None


def page():
    proven = sum(bool(proofs_of(row)) for row in ROWS)
    lines = [
        "# What the tests prove of the reference",
        "",
        "<!-- Made by tests/reference/test_coverage.py of docs/reference.json and tests/reference/coverage.toml. -->",
        "",
        "Each class and function of the public interface with its arguments, their defaults, and the tests that prove",
        "what they do. That names, order and defaults are the real ones is compared by",
        "[tests/reference/test_signatures.py](../tests/reference/test_signatures.py).",
        "",
        f"{len(ROWS)} rows, {proven} of them with tests. After a change: `{COMMAND}`.",
    ]
    for path in REFERENCE["signatures"]:
        lines += ["", f"## {path}", "", "| name or argument | default | proven by |", "| --- | --- | --- |"]
        lines += [_line(row) for row in ROWS if row.path == path]
    return "\n".join(lines) + "\n"


def _line(row):
    name = row.path.rpartition(".")[2] if row.name == ITSELF else row.name
    default = "" if row.default is None else f"`{row.default}`"
    return f"| `{name}` | {default} | {', '.join(map(_linked, proofs_of(row)))} |"


def _linked(test):
    name, _, function = test.partition("::")
    return f"[{function}](../{name})"


def test_the_page_is_the_table():
    if os.environ.get(WRITE) == "1":
        PAGE.write_text(page())
    assert PAGE.exists(), f"docs/reference-coverage.md is missing, make it: {COMMAND}"
    assert PAGE.read_text() == page(), f"docs/reference-coverage.md is not up to date, make it anew: {COMMAND}"
