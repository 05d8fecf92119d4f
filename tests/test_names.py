"""One word per thing: no two public classes or functions of the package share a name, unless they are one idea."""

import ast
from collections import defaultdict
from pathlib import Path

import accmt

PACKAGE = Path(accmt.__file__).parent

ONE_IDEA = {
    "main": "the entry of a program: the command line, and the process that it starts for a launch",
    "run": "the function of each command of the command line",
    "add_arguments": "completes the parser of each command",
    "Rules": "the rules of a training: as a value, and in loops and trainers of others",
    "from_main": "what the main process found, on all: with Accelerate, and in loops that accmt does not run",
}


def public():
    """Return name -> the files that define a public class or function of this name."""
    places = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                places[node.name].add(str(path.relative_to(PACKAGE)))
    return places


def test_no_two_public_things_share_a_name():
    shared = {name: sorted(places) for name, places in public().items() if len(places) > 1}
    assert len(public()) > 500
    assert not {name: places for name, places in shared.items() if name not in ONE_IDEA}


def test_the_exceptions_are_needed():
    assert not [name for name in ONE_IDEA if len(public()[name]) < 2]
