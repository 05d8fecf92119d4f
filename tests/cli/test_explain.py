"""`accmt explain`: the decisions of a training as a table, and clear words where there is none."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from accmt.cli.main import main
from accmt.rules import Facts, Observation, Progress, Reported, RuleEngine, Rules, SavingRule, StopCondition

COMMAND = Path(sys.executable).with_name("accmt")


@pytest.fixture
def folder(tmp_path):
    """The folder of a training of two rules: 0.5, nan, 0.7, 0.6."""
    rules = Rules(
        (
            SavingRule.parse("best_accuracy keep 2", patience=3),
            SavingRule.parse("accuracy", name="high", saving_above=1),
        ),
        (StopCondition.parse("evaluation >= 4"),),
    )
    facts = Facts({"accuracy": Reported(("dev",), greater_is_better=True)}, ("dev",))
    engine = RuleEngine(rules, facts)
    path = tmp_path / "model"
    path.mkdir()
    with (path / "decisions.jsonl").open("w") as file:
        for number, value in enumerate((0.5, float("nan"), 0.7, 0.6), 1):
            progress = Progress(step=10 * number, epoch=number, evaluation=number)
            decision = engine.after_evaluation(Observation(progress, {"dev": {"accuracy": value}}))
            file.write(json.dumps(decision.to_json()) + "\n")
    return path


@pytest.fixture
def explain(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        status = main(["explain", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


TABLE = """\
Decisions
evaluation  step  epoch  rule           values  verdict  why
         1    10      1  best_accuracy  0.5     saved    0.5 is the first, saved
                         high           0.5     blocked  blocked by saving_above 1
         2    20      2  best_accuracy  nan     nan      accuracy is nan
                         high           nan     nan      accuracy is nan
         3    30      3  best_accuracy  0.7     saved    0.7 is among the best 2, saved
                         high           0.7     blocked  blocked by saving_above 1
         4    40      4  best_accuracy  0.6     saved    0.6 beats 0.5, saved
                         high           0.6     blocked  blocked by saving_above 1
                                                stop     the condition 'evaluation >= 4' holds

best_accuracy: saved 3 times; the best at the end is 0.7 of evaluation 3, at step 30; also kept: evaluation 4
high: saved nothing (blocked 3 times, nan once)
stopped after evaluation 4, at step 40: the condition 'evaluation >= 4' holds
"""


def test_all_rules(explain, folder):
    assert explain(folder) == (0, TABLE, "")


def test_the_command_itself(folder):
    ran = subprocess.run([COMMAND, "explain", folder], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, TABLE, "")
    ran = subprocess.run([COMMAND, "explain", folder.parent], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        f"{folder.parent} is not the folder of a training: it has no decisions.jsonl; these folders in it are: model\n"
    )
    for number in range(14):
        (folder.parent / f"n{number:02}").mkdir()
        (folder.parent / f"n{number:02}" / "decisions.jsonl").touch()
    ran = subprocess.run([COMMAND, "explain", folder.parent], capture_output=True, text=True, check=False)
    assert ran.stderr.endswith("n09, n10 and 3 more\n")
    assert subprocess.run([COMMAND, "explain"], capture_output=True, check=False).returncode == 2


def test_whoever_reads_may_stop_reading(folder):
    line = (folder / "decisions.jsonl").read_text().splitlines(keepends=True)[0]
    (folder / "decisions.jsonl").write_text(line * 5000)
    explained = subprocess.Popen([COMMAND, "explain", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert explained.stdout.readline() == b"Decisions\n"
    explained.stdout.close()
    assert explained.stderr.read() == b""
    explained.stderr.close()
    assert explained.wait() == 1


@pytest.mark.parametrize("name", ["best_accuracy", "accuracy", "best_accuracy keep 9"])
def test_one_rule(explain, folder, name):
    status, out, _ = explain(folder, "--rule", name)
    assert status == 0
    assert "high" not in out
    assert out.count("best_accuracy") == 5


def test_an_unknown_rule(explain, folder):
    said = "there is no rule 'hihg', did you mean 'high'? The rules are: best_accuracy, high\n"
    assert explain(folder, "--rule", "hihg") == (1, "", said)


def test_no_training(explain, tmp_path):
    assert explain(tmp_path / "no") == (1, "", f"{tmp_path}/no: there is no such folder\n")
    assert explain(tmp_path) == (1, "", f"{tmp_path} is not the folder of a training: it has no decisions.jsonl\n")
    (tmp_path / "decisions.jsonl").touch()
    assert explain(tmp_path) == (0, f"{tmp_path}: no decisions yet\n", "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 1', ", line 2 is damaged: "),
        ("[1]", ", line 2 is not a decision: [1] is not an object"),
        ("{}", ", line 2 is not a decision: step is missing"),
        ("\0\0\0", ", line 2 is damaged: "),
        (None, ", line 2 is not a decision: verdicts.0.outcome: 'odd' is not a valid Outcome"),
    ],
)
def test_damaged_lines(explain, folder, line, said):
    path = folder / "decisions.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('"nan", "reason', '"odd", "reason') if line is None else line
    path.write_text("\n".join(lines) + "\n")
    status, out, err = explain(folder)
    assert (status, out) == (1, "")
    assert err.startswith(f"{path}{said}")


def test_a_last_line_that_was_cut_off_is_left_out(explain, folder):
    path = folder / "decisions.jsonl"
    path.write_text(path.read_text()[:-20])
    status, out, _ = explain(folder)
    assert status == 0
    assert out.endswith("no rule asked to stop\n")


def test_brackets_are_no_markup(explain, folder):
    path = folder / "decisions.jsonl"
    path.write_text(path.read_text().replace("accuracy is nan", "[bold]accuracy[/bold] is nan"))
    assert "[bold]accuracy[/bold] is nan" in explain(folder)[1]


def rows(text):
    return list(csv.reader(io.StringIO(text)))


def test_the_last_evaluations(explain, folder):
    """The summary stays that of the whole training."""
    status, out, _ = explain(folder, "--last", 1)
    head, summary = TABLE.split("\n\n")
    assert status == 0
    assert [line.split() for line in out.split("\n\n")[0].splitlines()] == [
        line.split() for line in [*head.splitlines()[:2], *head.splitlines()[-3:]]
    ]
    assert out.split("\n\n")[1] == summary
    assert explain(folder, "--last", 9) == (0, TABLE, "")


def test_as_json(explain, folder):
    """Each decision as the training wrote it; with a rule, its verdicts alone."""
    status, out, _ = explain(folder, "--json")
    assert (status, out) == (0, (folder / "decisions.jsonl").read_text())
    status, out, _ = explain(folder, "--json", "--rule", "high", "--last", "2")
    found = [json.loads(line) for line in out.splitlines()]
    assert [[verdict["rule"] for verdict in decision["verdicts"]] for decision in found] == [["high"], ["high"]]
    assert [decision["evaluation"] for decision in found] == [3, 4]


def test_as_csv(explain, folder):
    status, out, _ = explain(folder, "--csv", "--rule", "accuracy")
    assert status == 0
    assert rows(out) == [
        ["evaluation", "step", "epoch", "rule", "values", "verdict", "why"],
        ["1", "10", "1", "best_accuracy", "0.5", "saved", "0.5 is the first, saved"],
        ["2", "20", "2", "best_accuracy", "nan", "nan", "accuracy is nan"],
        ["3", "30", "3", "best_accuracy", "0.7", "saved", "0.7 is among the best 2, saved"],
        ["4", "40", "4", "best_accuracy", "0.6", "saved", "0.6 beats 0.5, saved"],
        ["4", "40", "4", "", "", "stop", "the condition 'evaluation >= 4' holds"],
    ]
    assert len(rows(explain(folder, "--csv")[1])) == 1 + 2 * 4 + 1


def test_forms_without_decisions(explain, tmp_path):
    (tmp_path / "decisions.jsonl").touch()
    assert explain(tmp_path, "--json") == (0, "", "")
    assert explain(tmp_path, "--csv") == (0, "evaluation,step,epoch,rule,values,verdict,why\n", "")


@pytest.mark.parametrize("wrong", [("--json", "--csv"), ("--last", "0"), ("--last", "two")])
def test_forms_that_are_refused(folder, wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["explain", str(folder), *wrong])
    assert ended.value.code == 2
    assert "usage: accmt explain" in capsys.readouterr().err
