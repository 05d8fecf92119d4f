"""The page of the hyperparameter search: its programs run, one after the other, and give what it says."""

import doctest
import re
from pathlib import Path

import pytest
from launching import launch

from accmt import ConfigError
from accmt.hp_search import HyperParameterSearch

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

PAGE = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "hyperparameter-search.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SESSIONS = re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which all programs were run as one, and what they printed."""
    folder = tmp_path_factory.mktemp("page")
    strict = "import warnings\n\nwarnings.simplefilter('error', UserWarning)\n"
    return folder, launch(strict + "\n".join(PROGRAMS), folder=folder).check().stdout


def test_the_search_finds_something(ran):
    _, printed = ran
    [value] = re.findall(r"^(\d\.\d+) \{", printed, re.MULTILINE)
    # By chance one in ten is right.
    assert 0.3 < float(value) <= 1.0
    assert printed.count("The best trials, maximize accuracy@dev") == 3
    assert printed.count("The best trials, minimize value") == 1


def test_a_callback_that_is_shared_gathers_over_all_trials(ran):
    assert ran[1].endswith("[15, 15]\n")


def test_the_study_stays_and_has_as_many_trials_as_the_page_says(ran):
    folder, printed = ran
    assert {path.name for path in folder.iterdir()} == {"search.db"}
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{folder / 'search.db'}")
    assert len(study.trials) == 6
    assert "6 trials in the study" in printed
    assert study.user_attrs["objective"] == "best_accuracy@dev"


def test_mistakes_are_told_as_shown(regression, data):
    searching = HyperParameterSearch(regression, data(4), data(4))
    test = doctest.DocTestParser().get_doctest("\n".join(SESSIONS), {"search": searching}, "page", None, 0)
    output = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
    assert runner.tries == 1


def test_what_the_table_declares_can_be_declared(regression, data):
    table = PAGE.split("| declared | tried |")[1].split("\n\n")[0]
    rows = [row.split("|")[1].strip().strip("`") for row in table.splitlines()[2:]]
    assert len(rows) == 6
    searching = HyperParameterSearch(regression, data(4), data(4))
    names: dict = {}
    exec("from functools import partial\nfrom accmt import Scheduler", names)
    for row in rows:
        searching.set_parameters(**eval(f"dict({row})", names))
    with pytest.raises(ConfigError):
        searching.set_parameters(**eval("dict(learning_rate=[1e-3])", names))


def test_the_page_has_its_programs():
    assert len(PROGRAMS) == 4
    assert len(SESSIONS) == 1
