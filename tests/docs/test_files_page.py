"""docs/reference/files.md: every file that a training writes is on the page, with its keys, and every variable read."""

import ast
import json
import re
from pathlib import Path

import pytest

import accmt
from accmt.checkpoint.saved_models import AVERAGE, AVERAGE_RECORD
from accmt.cli.seeds.runs import NOTES
from accmt.rules import reserved_names as names

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "files.md"


def test_every_file_is_listed():
    text = PAGE.read_text("utf-8")
    journals = (names.HISTORY, names.DECISIONS, names.REPLICATES, names.TRAINING, names.RUN, names.LOG, names.REPORT)
    written = (*journals, names.OUTPUT, names.PROFILE, names.OUTBOX, names.CHECKPOINTS, names.LOCK, names.MANIFEST)
    written += (names.SAVING, names.SAVINGS, AVERAGE, AVERAGE_RECORD, NOTES, "held_out", "average_of")
    listed = [name for name in written if f"`{name}" in text or re.search(rf"\n  {name}/? ", text)]
    assert listed == list(written)


@pytest.fixture(scope="module")
def keys():
    text = PAGE.read_text("utf-8") + PAGE.parent.with_name("how-to").joinpath("tracking.md").read_text("utf-8")
    return {word.removeprefix("verdicts[].") for word in text.split("`")[1::2]}


def test_every_key_is_listed(keys, trainer, regression, data, tmp_path):
    trainer(enable_checkpointing=True, disable_model_saving=False).fit(regression(), data(16), {"dev": data(8)})
    written = [*(tmp_path / "model").rglob("*.json"), *(tmp_path / "model").rglob("*.jsonl")]
    assert {path.name for path in written} >= {"history.jsonl", "run.json", "trainer.json", "process-0.json"}
    for path in written:
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        found = {key for line in lines for key in json.loads(line)} if path.name != "process-0.json" else set()
        assert found - keys == set(), path


def test_every_variable_that_is_read_is_listed():
    text, read = PAGE.read_text("utf-8"), set()
    for path in Path(accmt.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for name in filter(None, map(_name_of_variable, ast.walk(tree))):
            read.add(constants[name.id] if isinstance(name, ast.Name) else name.value)
    assert len(read) > 10
    assert [name for name in sorted(read) if f"`{name}`" not in text and f"`{name}=" not in text] == []


def _name_of_variable(node):
    """The expression that names a variable of the environment: in a call, a subscript or a comparison."""
    match node:
        case ast.Call(func=asked, args=[name, *_]) | ast.Subscript(value=asked, slice=name):
            pass
        case ast.Compare(left=name, comparators=[asked]):
            pass
        case _:
            return None
    return (
        name
        if re.fullmatch(r"os\.environ(\.(get|setdefault|pop))?|os\.getenv|parse_flag_from_env", ast.unparse(asked))
        else None
    )
