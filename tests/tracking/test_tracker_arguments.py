"""`log_with`, `logging_dir` and the arguments of runs are checked by the constructor, all at once."""

import importlib.util

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from accmt import ConfigError, HyperParameters, Trainer
from accmt.tracking import tracker_arguments as module
from accmt.tracking.tracker_arguments import choose_trackers, known_trackers

OWN = ("patience", "log_with", "track_name")
NEEDED = [pytest.importorskip(name, reason=f"{name} is not installed") for name in ("mlflow", "tensorboard")]

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def chosen(log_with, location="logs", **given):
    trackers, problems = choose_trackers(log_with, location, given, OWN)
    assert problems == []
    return trackers


def refused(log_with, location="logs", **given):
    return [str(problem) for problem in choose_trackers(log_with, location, given, OWN)[1]]


class Mine(GeneralTracker):
    name = "mine"
    requires_logging_directory = False

    def __init__(self, project, color=None):
        super().__init__()

    @property
    def tracker(self):
        return None


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", Mine)


def test_what_is_known():
    assert set(known_trackers()) >= {"mlflow", "tensorboard", "wandb", "trackio", "comet_ml", "aim", "clearml"}
    assert set(known_trackers()) == set(LOGGER_TYPE_TO_CLASS)


@pytest.mark.parametrize(
    ("log_with", "names"),
    [
        (None, []),
        ([], []),
        ("mlflow", ["mlflow"]),
        (["tensorboard", "mlflow", "tensorboard"], ["tensorboard", "mlflow"]),
        (("mlflow",), ["mlflow"]),
        (LoggerType.TENSORBOARD, ["tensorboard"]),
    ],
)
def test_one_or_several(log_with, names):
    assert list(chosen(log_with)) == names


def test_arguments_go_to_those_that_take_them(registered):
    trackers = chosen(
        ["mlflow", "tensorboard", "mine"], run_name="first", flush_secs=5, tags={"team": "a"}, mine={"color": "red"}
    )
    assert trackers == {
        "mlflow": {"run_name": "first", "tags": {"team": "a"}},
        "tensorboard": {"run_name": "first", "flush_secs": 5},
        "mine": {"color": "red"},
    }


def test_an_argument_for_one_tracker_goes_before_that_for_all():
    trackers = chosen(["mlflow", "tensorboard"], mlflow={"run_name": "special"}, run_name="first")
    assert trackers == {"mlflow": {"run_name": "special"}, "tensorboard": {"run_name": "first"}}


@pytest.mark.parametrize(
    ("log_with", "given", "text"),
    [
        ("mlflow", {"run_nam": "x"}, "run_nam: unknown argument, did you mean 'run_name'?"),
        ("mlflow", {"pacience": 1}, "pacience: unknown argument, did you mean 'patience'?"),
        ("mlflow", {"zzz": 1}, "zzz: unknown argument."),
        ("mlflow", {"flush_secs": 1}, "flush_secs: unknown argument."),
        ("tensorboard", {"flush_sec": 1}, "flush_sec: unknown argument, did you mean 'flush_secs'?"),
        ("tensorboard", {"tags": {}}, "tags: unknown argument."),
        ("tensorboard", {"log_dir": "x"}, "log_dir: tensorboard gets it from logging_dir: give that instead"),
        ("mlflow", {"mlflow": {"tag": {}}}, "mlflow.tag: unknown argument, did you mean 'tags'?"),
        ("mlflow", {"mlflow": 3}, "mlflow: unknown argument."),
        ("mlflow", {"tags": ["a"]}, "tags: must be a dictionary, not ['a'] (list)"),
        ("mlflow", {"run_name": 3}, "run_name: must be a string, not 3 (int)"),
        (
            "mlflow",
            {"start_time": "now"},
            "start_time: must be a whole number of milliseconds since 1970, not 'now' (str)",
        ),
        ("mine", {"colour": "red"}, "colour: unknown argument, did you mean 'color'?"),
        (None, {"run_name": "x"}, "run_name: is for a tracker, and there is none: give log_with"),
        (None, {"tensorboard": {}}, "tensorboard: is for a tracker, and there is none: give log_with"),
        (None, {"pacience": 1}, "pacience: unknown argument, did you mean 'patience'?"),
        (3, {}, "log_with: must be the name of a tracker, a list of names, or None, not 3 (int)"),
        ([None], {}, "log_with: must be the name of a tracker, a list of names, or None, not None"),
    ],
)
def test_mistakes(registered, log_with, given, text):
    assert refused(log_with, **given) == [text]


def test_unknown_names(registered):
    allowed = "Allowed are mlflow, " + ", ".join(sorted({*LOGGER_TYPE_TO_CLASS} - {"mlflow"})) + ", or None"
    assert refused(["mlflo", "mlflow", "zzz"]) == [
        f"log_with: unknown tracker 'mlflo', did you mean 'mlflow'? {allowed}",
        f"log_with: unknown tracker 'zzz'. {allowed}",
    ]


def test_what_is_not_installed_is_said_before_anything_else(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in ("wandb", "mlflow") else found(name))
    with pytest.raises(ConfigError) as caught:
        Trainer(HyperParameters(), "nowhere", log_with=["wandb", "mlflow"])
    assert str(caught.value) == (
        "2 mistakes in Trainer(...):\n"
        "  log_with: 'wandb' is not installed: pip install wandb\n"
        "  log_with: 'mlflow' is not installed: pip install mlflow"
    )


def test_tensorboard_has_another_package_too(monkeypatch):
    there = {"tensorboard": None, "tensorboardX": object()}
    monkeypatch.setattr(module, "find_spec", lambda name: there[name])
    assert list(chosen("tensorboard")) == ["tensorboard"]


@pytest.mark.parametrize("location", ["http://localhost:5000", "10.0.0.1:5000"])
def test_an_address_is_no_folder(location):
    assert refused("tensorboard", location) == [
        f"logging_dir: '{location}' is an address, and tensorboard needs a folder"
    ]
    assert refused(["tensorboard", "mlflow"], location) == []


def test_a_folder_that_nobody_would_use(registered):
    assert refused("mine", "elsewhere") == ["logging_dir: mine would not use it: leave it out"]
    assert refused(["mine", "tensorboard"], "elsewhere") == []
    assert refused("mine") == []


def test_a_tracker_that_takes_anything_is_given_anything(monkeypatch):
    """Its own start has to refuse it, as what it takes cannot be known before."""

    class Open(Mine):
        def __init__(self, project, **anything):
            super().__init__(project)

    def broken(name):
        raise ImportError(name)

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", Open)
    assert chosen("mine", zzz=1) == {"mine": {"zzz": 1}}
    assert refused("mine", pacience=1) == ["pacience: unknown argument, did you mean 'patience'?"]
    assert chosen("mine", mine={"pacience": 1}) == {"mine": {"pacience": 1}}
    monkeypatch.setattr(module, "import_module", broken)
    assert chosen("tensorboard", zzz=1) == {"tensorboard": {"zzz": 1}}
    assert refused("tensorboard", log_dir="x") == ["log_dir: tensorboard gets it from logging_dir: give that instead"]
