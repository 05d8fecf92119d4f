"""Every row of tests/reference/reference.json has tests that prove its effect.

A row is a class or function, one of its arguments, or an attribute. A test says which rows it proves:

    @pytest.mark.proves("Trainer(max_shard_size)", "Trainer.fit", "hyperparameters.Optimizer.*(*)")

A * stands for any one name, where a test goes through all of them by the reference; it is for the rows that no marker
names more exactly.
"""

import ast
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text())
ITSELF = "itself"


class Row(NamedTuple):
    """The path of a thing, and one of its arguments or attributes, or the thing itself."""

    path: str
    name: str
    default: str | None = None

    def __str__(self):
        path = self.path.removeprefix("accmt.")
        return path if self.name == ITSELF else f"{path}({self.name})"


class Proof(NamedTuple):
    """A test, and the rows that one argument of its marker names."""

    file: str
    test: str
    rows: str
    never: str | None

    def __str__(self):
        return f"{self.file}::{self.test}"


def rows():
    for path, parameters in REFERENCE["signatures"].items():
        yield Row(path, ITSELF)
        yield from (Row(path, name, default) for name, default in parameters.items() if name != "*")
        for name, default in REFERENCE["attributes"].get(path, {}).items():
            if name not in parameters:
                yield Row(path, name, default)


ROWS = list(rows())


def functions_in(body, prefix=""):
    """The tests of a file as pytest names them, with what stands above each."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions_in(node.body, f"{node.name}::")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield prefix + node.name, node.decorator_list


@cache
def proofs():
    """What the markers of all tests name, in the order of files and lines."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        if "@pytest.mark.proves(" in text:
            tests = list(functions_in(ast.parse(text).body))
            times = Counter(name for name, _ in tests)
            for name, decorators in tests:
                lines = [ast.unparse(decorator) for decorator in decorators]
                never = [f"@{line}" for line in lines if re.match(r"pytest\.mark\.(skip|xfail)(\(|$)", line)]
                never += ["its second definition"] if times[name] > 1 else []
                for decorator in decorators:
                    if ast.unparse(decorator).startswith("pytest.mark.proves("):
                        file = path.relative_to(ROOT).as_posix()
                        found += [Proof(file, name, ast.literal_eval(n), (never or [None])[0]) for n in decorator.args]
    return found


@cache
def pattern_of(rows):
    """The rows that an argument of a marker names, as parts of their names."""
    path, _, name = rows.removesuffix(")").partition("(")
    return ("accmt." + path).split("."), name or ITSELF


def is_for(rows, row):
    path, name = pattern_of(rows)
    parts = row.path.split(".")
    fits = len(path) == len(parts) and all(wanted in ("*", part) for wanted, part in zip(path, parts, strict=True))
    return fits and (name == row.name or (name == "*" and row.name != ITSELF))


def vagueness(rows):
    """A path with stars is vaguer than a name of a star."""
    path, name = pattern_of(rows)
    return path.count("*"), name == "*"


def proofs_of(row):
    """Those that name it most exactly."""
    found = [proof for proof in proofs() if is_for(proof.rows, row)]
    least = min((vagueness(proof.rows) for proof in found), default=None)
    return [proof for proof in found if vagueness(proof.rows) == least]


@pytest.mark.parametrize("path", REFERENCE["signatures"])
def test_every_row_has_a_test(path):
    missing = [str(row) for row in ROWS if row.path == path and not proofs_of(row)]
    assert missing == [], "mark tests that prove them with @pytest.mark.proves(...)"


def test_attributes_are_of_things_that_have_a_signature():
    assert REFERENCE["attributes"].keys() <= REFERENCE["signatures"].keys()


def test_every_marker_names_rows():
    unknown = [f"{proof}: {proof.rows}" for proof in proofs() if not any(is_for(proof.rows, row) for row in ROWS)]
    assert unknown == [], "tests/reference/reference.json has no such row"


def test_every_test_that_proves_something_has_to_hold():
    assert [f"{proof} never has to hold: {proof.never}" for proof in proofs() if proof.never] == []
