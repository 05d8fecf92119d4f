"""Two real processes search as one: the same values, the same ends, and one of them talks to the study."""

import json
import math
import re
from pathlib import Path

import optuna
import pytest
from launching import launch

SCRIPT = Path(__file__).parent / "processes.py"

pytestmark = pytest.mark.xdist_group("processes")


def search(folder, mode):
    (folder / "tmp").mkdir(exist_ok=True)
    return launch(SCRIPT, folder, mode, processes=2, environment={"TMPDIR": str(folder / "tmp")})


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder, what was printed, and what each process held at the end."""
    folder = tmp_path_factory.mktemp("searched")
    ran = search(folder, "both").check()
    return folder, ran, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_all_processes_train_with_the_values_of_the_study(searched):
    _, _, (main, second) = searched
    assert main["used"] == second["used"]
    for number, _, _, values, _ in main["study"]:
        used = {(batch, rate) for training, batch, rate in main["used"] if training == number}
        assert used in (set(), {(values["train_batch_size"], values["learning_rate"])})
    assert {number for number, _, _ in main["used"]} == {0, 2, 3, 4}


def test_all_processes_agree_on_how_each_trial_ended(searched):
    _, _, (main, second) = searched
    for name in ("study", "other", "best", "names", "folders", "evaluations"):
        assert main[name] == second[name], name
    assert [state for _, state, *_ in main["study"]] == ["COMPLETE", "FAIL", "FAIL", "PRUNED", "COMPLETE"]
    assert main["evaluations"] == [2, 0, 2, 1, 2]
    errors = [error for *_, error in main["study"]]
    where = "process 0: RuntimeError: fails everywhere; raised in Module.training_step, epoch 1, step 0; its batch: "
    assert errors[1].startswith(where)
    assert re.fullmatch(r"process 1: ValueError: fails on one; raised in Witness.on_fit_end, .*", errors[2])


def test_an_error_that_only_the_main_process_has_ends_the_trial_on_all(searched):
    _, _, (main, _) = searched
    assert [state for _, state, *_ in main["other"]] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert main["other"][1][4].startswith("process 0: LookupError: only the main process knows")
    assert main["other"][0][2] == main["other"][2][2]
    assert math.isfinite(main["other"][0][2])


def test_the_storage_holds_what_the_main_process_told(searched):
    folder, _, (main, _) = searched
    loaded = optuna.load_study(study_name="two", storage=f"sqlite:///{folder / 'search.db'}")
    assert [[t.number, t.state.name, t.value, t.params] for t in loaded.trials] == [t[:4] for t in main["study"]]


def test_only_the_main_process_prints(searched):
    _, ran, _ = searched
    assert [int(number) for number in re.findall(r"^trial (\d+):", ran.stdout, re.MULTILINE)] == [
        0,
        1,
        2,
        3,
        4,
        0,
        1,
        2,
    ]
    assert ran.stdout.count("The best trials") == 2
    assert ran.stderr == ""


def test_nothing_is_left(searched):
    folder, _, (main, second) = searched
    assert {path.name for path in folder.iterdir()} == {"tmp", "search.db", "rank0.json", "rank1.json"}
    assert [path for path in (folder / "tmp").iterdir() if path.name.startswith("accmt")] == []
    assert {Path(path).parent for path in main["folders"]} == {folder / "tmp"}
    for own in (main, second):
        assert own["threads"]
        assert not [name for name in own["threads"] if "gloo" in name]


def test_what_one_process_alone_ends_ends_the_search_soon_and_says_why(tmp_path):
    """The other process waits for it in the middle of the training, and would for half an hour."""
    ran = search(tmp_path, "alone")
    assert ran.returncode != 0
    assert (
        "EndedAlone: process 1 ended trial 0 of two alone, and the others wait for it: RuntimeError: fails alone; "
        in ran.stderr
    )
    assert "in training_step\n" in ran.stderr
    [trial] = optuna.load_study(study_name="two", storage=f"sqlite:///{tmp_path / 'search.db'}").trials
    assert trial.state.name in ("FAIL", "RUNNING")
