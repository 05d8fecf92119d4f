"""`accmt report`: a page about trainings."""

import json
import webbrowser

import pytest

from accmt.cli.main import main
from accmt.report import live


@pytest.fixture
def folder(trainer, regression, data, error_metric):
    """The folder of a small training."""
    training = trainer("runs/a", metrics=error_metric())
    training.fit(regression(), data(8), {"dev": data(4), "test": data(4, 2)})
    return training.model_path


@pytest.fixture(autouse=True)
def _started_here(tmp_path, monkeypatch):
    monkeypatch.setattr("accmt.files.paths._STARTED", tmp_path)


@pytest.fixture
def report(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main(["report", *map(str, arguments)])
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return run


def test_it_writes_a_page(report, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report(folder) == (0, "report.html\n", "")
    assert "<h1>runs/a</h1>" in (tmp_path / "report.html").read_text()
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    assert report(folder, "-o", "other.html", "--open") == (0, "other.html\n", "")
    assert opened == [(tmp_path / "other.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    status, _, err = report(folder, "--open")
    assert (status, err) == (1, f"{tmp_path}/report.html was written, but no browser could be opened\n")


def test_several_folders_are_one_page(report, folder, trainer, regression, data, tmp_path, monkeypatch):
    trainer("runs/b", lr=0.1).fit(regression(), data(8), data(4))
    monkeypatch.chdir(tmp_path)
    assert report("runs/a", "runs/b", "runs/a")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h1>2 trainings</h1>" in page
    assert "They differ in optim_kwargs.lr" in page


def test_text(report, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = report("runs/a", "--text")
    lines = out.splitlines()
    assert (status, err, lines[0], lines[2]) == (0, "", "runs/a", "Trained to its end, step 4.")
    assert lines[4].startswith("best_valid_loss  valid_loss ")
    assert not (tmp_path / "report.html").exists()


def test_what_cannot_be_done_is_said(report, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert report("empty") == (1, "", "no training was found in empty\n")
    assert report("nothing") == (1, "", "nothing does not exist\n")
    status, _, err = report("runs/a", "--text", "--open")
    assert status == 2
    assert err.endswith("error: --text writes no page: leave out --output and --open, or --text\n")
    assert report("runs/a", "--tracking-uri", "x")[2].endswith("--tracking-uri is only for mlflow:EXPERIMENT\n")
    said = f"{tmp_path}/no/page.html cannot be written: No such file or directory\n"
    assert report("runs/a", "-o", "no/page.html") == (1, "", said)
    (folder / "decisions.jsonl").write_text("[]\n")
    assert report("runs/a")[2] == f"{folder}/decisions.jsonl, line 1 is not a decision: [] is not an object\n"
    monkeypatch.setattr(live, "find_spec", lambda name: None if name == "plotly" else name)
    (folder / "decisions.jsonl").unlink()
    assert report("runs/a") == (1, "", "a report needs plotly: pip install plotly\n")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_experiment_of_mlflow(report, trainer, regression, data, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    for number in (1, 2):
        given = {"log_with": "mlflow", "logging_dir": str(tmp_path / "logs"), "track_name": "tries", "log_every": 1}
        training = trainer(f"m{number}", lr=0.05 * number, run_name=f"try {number}", **given)
        training.fit(regression(), data(8), data(4))
    monkeypatch.chdir(tmp_path)
    assert report("mlflow:tries", "--tracking-uri", "logs") == (0, "report.html\n", "")
    page = (tmp_path / "report.html").read_text()
    assert ">try 1</th>" in page
    assert "finished, at step 4" in page
    assert "optimizer.lr" in page.split("They differ in ")[1].split("</p>")[0]
    figures = [json.loads(part.split("</script>")[0]) for part in page.split('<script type="application/json">')[1:]]
    assert any(
        trace["x"] == [1, 2, 3, 4] and trace["name"] == "try 2: training" for one in figures for trace in one["data"]
    )
    rule = ("--rule", "valid_loss", "--patience", "1")
    assert report("mlflow:tries", "--tracking-uri", "logs", *rule) == (0, "report.html\n", "")
    assert (tmp_path / "report.html").read_text().count("<h3>what if: valid_loss, patience 1</h3>") == 2
    said = "there is no experiment 'nothing' where --tracking-uri points\n"
    assert report("mlflow:nothing", "--tracking-uri", "logs") == (1, "", said)


def test_rules_that_it_did_not_have(report, folder, tmp_path):
    page = tmp_path / "page.html"
    assert report(folder, "-o", page, "--rule", "best_valid_loss@dev by 50%", "--patience", "1")[0] == 0
    text = page.read_text()
    assert "<h3>what if: best_valid_loss@dev by 50%, patience 1</h3>" in text
    assert "not written: this rule was not part of the training" in text
    assert "what if" not in text.split("<strong>Kept:</strong>")[1].split("</p>")[0]


def test_another_patience_for_its_own_rules(report, folder):
    out = report(folder, "--text", "--patience", "1")[1]
    assert "what if: best_valid_loss, patience 1" in out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--rule", "best_acuracy"), 1, "unknown metric 'acuracy'"),
        (("--rule", "best_valid_loss by"), 1, "best_valid_loss by"),
        (("--patience", "0"), 2, "'0' is not a whole number of at least 1"),
    ],
)
def test_rules_that_do_not_fit(report, folder, tmp_path, arguments, status, said):
    page = tmp_path / "page.html"
    ended, out, err = report(folder, "-o", page, *arguments)
    assert (ended, out) == (status, "")
    assert said in err
    assert not page.exists()


def test_what_other_rules_would_have_changed_is_printed(report, folder):
    out = report(folder, "--text", "--rule", "best_valid_loss by 50%", "--patience", "1")[1]
    assert "what if: best_valid_loss by 50%, patience 1: It would not have stopped earlier. Its model:" in out


def test_a_folder_of_trainings(report, folder, trainer, regression, data, tmp_path):
    trainer("runs/deep/b").fit(regression(), data(8), data(4))
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "history.jsonl").write_text("{damaged\n")
    status, out, err = report(tmp_path / "runs", folder, f"{folder}/.", "--text")
    assert status == 0
    assert err.startswith(f"left out: {tmp_path}/runs/c/history.jsonl, line 1 is damaged: ")
    assert [part.split("\n")[0] for part in out.split("\n\n") if part.startswith("runs")] == ["runs/a", "runs/deep/b"]


TABLE = """step,epoch,dataset,accuracy
10,1,dev,0.5
20,2,dev,0.75
30,3,dev,0.7
40,4,dev,0.9
"""


def test_a_table_and_rules_for_it(report, tmp_path, monkeypatch):
    (tmp_path / "scores.csv").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    rule = ("--rule", "accuracy@dev", "--metric", "accuracy:max", "--patience", "1")
    status, out, err = report("scores.csv", "--text", *rule)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [
        "scores.csv",
        "It was read from a log or a table, which knows neither rules nor decisions.",
        "4 evaluations, the last at step 40.",
    ]
    said = "It would have stopped after epoch 3 (step 30): 25% fewer steps. Its model: accuracy@dev 0.15 worse than"
    assert said in out
    assert [line.split("  ")[0] for line in lines if line.startswith(("accuracy", "train"))] == ["accuracy@dev"]
    assert report("scores.csv", *rule) == (0, "report.html\n", "")
    page = (tmp_path / "report.html").read_text()
    assert "Configuration" not in page
    assert "Kept:" not in page


def test_a_page_cannot_be_a_folder(report, folder, tmp_path):
    said = f"{tmp_path} is a folder: give a file, such as {tmp_path}/report.html\n"
    assert report(folder, "-o", tmp_path) == (1, "", said)


def test_metrics_of_a_training_need_not_be_given(report, folder):
    status, _, err = report(folder, "--metric", "error:min")
    said = "accmt report: error: --metric and --dataset are for logs, tables and rules of --rule: leave them out"
    assert (status, err.splitlines()[-1]) == (2, said)
