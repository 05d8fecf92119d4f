"""The page of checkpoints tells of the files, arguments and ways to go on that there are."""

import inspect
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from page_runner import without_numbers

import accmt
from accmt import Callback, HyperParameters, Trainer
from accmt.setup.settings import NOT_COMPARED

PAGE = (Path(__file__).parent.parent.parent / "docs" / "reference" / "checkpoints.md").read_text()
PROGRAM, KEEPING = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[TREE] = re.findall(r"```\n(model_path/.*?)```", PAGE, re.DOTALL)
[NOTES] = re.findall(r"```\n(note: .*?)```", PAGE, re.DOTALL)
CADENCE = "500 steps or 10 minutes"


@pytest.fixture
def train(tmp_path, monkeypatch, regression, data):
    """Train with the trainer of the page, with checkpoints at every other step and other arguments if asked for."""
    monkeypatch.chdir(tmp_path)
    assert CADENCE in PROGRAM

    def run(resume=None, lr=0.003):
        program = PROGRAM.replace(CADENCE, "2 steps").replace("runs/model", "model")
        hps = HyperParameters(2, None, 4, "SGD", {"lr": lr}, "CosineAnnealingLR")
        names = {"Trainer": partial(Trainer, resume=resume), "hps": hps}
        exec(program, names)
        trainer = names["trainer"]
        trainer.register_model_saving("best_valid_loss")
        trainer.fit(regression(), data(16), data(8))
        return trainer

    return run


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_files_of_a_checkpoint_and_a_saving(train):
    train()
    listed = re.findall(r"^    (\S+)  ", TREE, re.MULTILINE)
    newest = names_in("model/checkpoints")[-1]
    assert names_in(f"model/checkpoints/{newest}") == sorted(listed)
    described = json.loads(Path(f"model/checkpoints/{newest}/MANIFEST.json").read_text())
    assert sorted(described["files"]) == sorted(set(listed) - {"MANIFEST.json"})
    assert {"saving.json", "MANIFEST.json"} < set(names_in("model/best_valid_loss"))


def test_it_keeps_as_many_as_it_says(train):
    train()
    assert names_in("model/checkpoints") == [f"checkpoint-000{n}-step-{2 * n}" for n in (2, 3, 4)]


@pytest.mark.parametrize("resume", [None, True, -1])
def test_the_newest_is_continued(train, resume):
    train()
    before = names_in("model/checkpoints")
    trainer = train(resume=resume)
    assert trainer.state.finished
    assert names_in("model/checkpoints") == before


@pytest.mark.parametrize("resume", [True, -1, 3])
def test_one_that_has_to_be_there(train, resume):
    with pytest.raises(RuntimeError, match=f"resume={resume}, but there is no checkpoint"):
        train(resume=resume)


def test_an_earlier_one_is_continued_and_later_ones_are_put_away(train):
    train()
    train(resume=3)
    assert names_in("model/checkpoints") == [f"checkpoint-000{n}-step-{2 * n}" for n in (2, 3, 4)]
    assert names_in("model/earlier-1") == ["checkpoint-0004-step-8"]


def test_it_says_what_has_changed(train, capsys):
    train()
    shutil.rmtree(max(Path("model/checkpoints").iterdir()))
    train(lr=0.1)
    assert without_numbers(NOTES) in without_numbers(capsys.readouterr().out)


def test_a_new_start_puts_everything_away(train):
    train()
    before = names_in("model/checkpoints")
    train(resume=False)
    assert names_in("model/earlier-1/checkpoints") == before


def test_the_exceptions_that_it_names():
    for name in re.findall(r"accmt\.([A-Z]\w+)", PAGE):
        assert issubclass(getattr(accmt, name), SystemExit)
    assert accmt.PeerFailed().code == 1


def test_the_callback_of_the_page_keeps_its_count():
    names = {"Callback": Callback}
    exec(KEEPING, names)
    first, second = names["Counting"](), names["Counting"]()
    first.count = 3
    second.load_state_dict(first.state_dict())
    assert second.count == 3


def _rows(title):
    table = re.search(rf"\| {title} \| at a resume \|\n\| --- \| --- \|\n((?:\|.*\|\n)+)", PAGE)[1]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]
    return [(name, text.rstrip("| ")) for names, text in cells for name in re.findall(r"`(\w+)`", names)]


@pytest.mark.parametrize(("title", "subject"), [("argument", Trainer), ("hyperparameter", HyperParameters)])
def test_every_argument_has_its_row(title, subject):
    """Once each; and it says whether a change takes effect at once, is refused, or has no effect."""
    rows = _rows(title)
    assert sorted(name for name, _ in rows) == sorted(inspect.signature(subject).parameters)
    for name, text in rows:
        assert re.match(r"(at once|fixed .*refused|no effect, which is said)", text) or name in NOT_COMPARED, name
        assert ("fixed" in text) == ("refused" in text)
