"""`accmt check`: rules in words, all mistakes with their places, and a start without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from accmt.cli.main import main

COMMAND = Path(sys.executable).with_name("accmt")
TWO = ["--metric", "accuracy:max", "--metric", "f1:max@test", "--dataset", "dev", "--dataset", "test"]


@pytest.fixture
def check(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        status = main(["check", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def refused(capsys):
    """Arguments -> the last line of what a wrong call says."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["check", *arguments])
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        assert err.startswith("usage: accmt check")
        return err.splitlines()[-1].removeprefix("accmt check: error: ")

    return run


def test_the_command_itself():
    ran = subprocess.run(
        [COMMAND, "check", "best_accuracy@dev", "--metric", "accuracy:max", "--dataset", "dev"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "best_accuracy@dev: saves when accuracy@dev is higher than at its last save\n"
    ran = subprocess.run([COMMAND, "check", "best_accuracy@"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "    best_accuracy@\n                  ^\n" in ran.stderr
    ran = subprocess.run([COMMAND, "chekc"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["check", "best_accuracy", "--metric", "accuracy:max", "--stop-when", "elapsed > 1 h"],
        ["check", "--config", "hps.yaml"],
        ["explain", "nowhere"],
        ["replay", "nowhere", "--rule", "accuracy"],
        ["replay", "scores.csv", "--rule", "accuracy", "--metric", "accuracy:max"],
        ["checkpoints", "nowhere"],
        ["weights", "--help"],
        ["launch", "--help"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_it_starts_at_once(arguments, tmp_path):
    (tmp_path / "hps.yaml").write_text("rules: {save: best_accuracy}")
    (tmp_path / "scores.csv").write_text("step,epoch,accuracy\n1,1,0.5\n")
    heavy = ("torch", "numpy", "accelerate", "mlflow", "pydantic", "rich")
    code = (
        "import sys\n"
        "from accmt.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    prints_a_table = arguments[:2] == ["replay", "scores.csv"]
    assert ran.stderr.splitlines()[-1] == ("['rich']" if prints_a_table else "[]")


@pytest.mark.parametrize(
    "command", ["check", "explain", "replay", "checkpoints", "weights", "sync", "launch", "strats"]
)
def test_help_is_enough(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  accmt {command}" in text


WORDS = [
    (["accuracy"], "best_accuracy: saves when accuracy is better than at its last save"),
    (["valid_loss"], "best_valid_loss: saves when valid_loss is lower than at its last save"),
    (
        ["valid_loss then accuracy"],
        "best_valid_loss then accuracy: saves when valid_loss is lower than at its last save, "
        "or in a tie accuracy is better",
    ),
    (["accuracy", *TWO], "best_accuracy: saves when accuracy is higher than at its last save"),
    (["1 - accuracy", *TWO], "best_1 - accuracy: saves when 1 - accuracy is lower than at its last save"),
    (
        ["accuracy@dev/f1 if epoch > 1 after 10%", *TWO],
        "best_accuracy@dev/f1: saves when one of accuracy@dev (higher) and f1 (higher) is better and none is worse "
        "than at its last save, if epoch > 1, once more than 10% have gone by",
    ),
    (
        ["accuracy by 0.1 keep 3", "--patience", "2"],
        "best_accuracy: saves when accuracy is better than in one of the 3 models that it keeps, by more than 0.1; "
        "keeps the 3 best models; asks to stop after 2 evaluations without improvement",
    ),
    (["accuracy - f1"], "best_accuracy - f1: saves when accuracy - f1 is better than at its last save"),
    (["min(accuracy)"], "best_min(accuracy): saves when min(accuracy) is lower than at its last save"),
    (["--stop-when", "valid_loss<1"], "stop_when: stops as soon as valid_loss < 1"),
    (["--checkpoint-every", "500st or 10min"], "checkpoint_every: checkpoints every 500 steps or 10 minutes"),
    (["--evaluate-every", "epoch after 2 ep"], "evaluate_every: evaluates every epoch, after 2 epochs"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), WORDS, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_in_words(check, arguments, line):
    assert check(*arguments) == (0, line + "\n", "")


def test_all_mistakes_at_once(check):
    status, out, err = check(
        "best_acuracy", "best_f1@dev", "accuracy by", "--stop-when", "elapsed > 2 houers", "--evaluate-every", "2", *TWO
    )
    assert (status, out) == (1, "")
    assert err == (
        "something is missing at the end\n"
        "    accuracy by\n"
        "               ^\n"
        "  allowed here: a number\n"
        "\n"
        "unknown unit 'houers'\n"
        "    elapsed > 2 houers\n"
        "                ^^^^^^\n"
        "  the units are: steps, epochs, evaluations, samples, seconds, minutes, hours and %\n"
        "  did you mean 'hours'?\n"
        "\n"
        "a unit is missing\n"
        "    2\n"
        "     ^\n"
        "  the units are: steps, epochs, evaluations, samples, seconds, minutes, hours and %\n"
        "\n"
        "unknown metric 'acuracy'\n"
        "    best_acuracy\n"
        "         ^^^^^^^\n"
        "  this training reports: accuracy (dev, test), f1 (test), train_loss, valid_loss (dev, test)\n"
        "  did you mean 'accuracy'?\n"
        "\n"
        "'f1' is not reported on 'dev'\n"
        "    best_f1@dev\n"
        "            ^^^\n"
        "  f1 is reported on: test\n"
    )


def test_a_single_dataset_has_the_key_0(check):
    assert check("accuracy@0", "--metric", "accuracy:max")[0] == 0
    status, _, err = check("accuracy@dev", "--metric", "accuracy:max")
    assert status == 1
    assert "  the datasets are: 0\n" in err


def test_the_datasets_of_the_metrics(check):
    assert check("accuracy@dev", "valid_loss@test", "--metric", "accuracy:max@dev,test")[0] == 0


def test_a_metric_without_a_direction(check):
    assert check("best_valid_loss if accuracy > 0.5", "--metric", "accuracy")[0] == 0
    status, _, err = check("accuracy", "--metric", "accuracy")
    assert status == 1
    assert err.startswith("nothing says which way is better here\n")


def test_names_of_any_characters(check):
    assert check('"recall@10"@"my set"', "--metric", "recall@10:max@my set")[0] == 0


def test_warnings_are_no_mistakes(check):
    status, out, err = check("accuracy if 1 < 2", "--metric", "accuracy:max")
    assert status == 0
    assert out.startswith("best_accuracy: ")
    assert err.startswith("warning: this condition never changes\n")


def test_a_cadence_of_any_length_can_come_due(check):
    assert check("--evaluate-every", "1000000 epochs", "--checkpoint-every", "0.5 epochs", "--metric", "a:max")[2] == ""


def test_rules_of_one_name(check):
    status, _, err = check("accuracy", "best_accuracy", "--metric", "accuracy:max")
    assert status == 1
    assert err == "the rule 'best_accuracy' is registered twice\n  give one of them a name: name=...\n\n" + (
        "On the command line, rules have names in a file: give it with --config\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "there is nothing to check: give a RULE or --config"),
        (["a", "hps.yaml"], "'hps.yaml' is the name of a file, not a rule: give it as --config hps.yaml"),
        (["a", "--dataset", "dev"], "--dataset needs the metrics as well: give each one with --metric"),
        (["a", "--metric", "a:maximum"], "argument --metric: 'a:maximum': expected max or min after ':', as in a:max"),
        (["a", "--metric", ""], "argument --metric: '': a name is empty or given twice, write it like a:max@dev,test"),
        (
            ["a", "--metric", "a:max@x,x"],
            "argument --metric: 'a:max@x,x': a name is empty or given twice, write it like a:max@dev,test",
        ),
        (
            ["a", "--metric", "train_loss:min"],
            "argument --metric: leave out train_loss: it is always reported, and lower is better",
        ),
        (
            ["a", "--metric", "valid_loss:max"],
            "argument --metric: leave out valid_loss: it is always reported, and lower is better",
        ),
        (
            ["a", "--metric", "a:max@dve", "--dataset", "dev"],
            "--metric a: 'dve' is not a dataset, did you mean 'dev'? The datasets are: dev",
        ),
        (["a", "--metric", "a:max", "--metric", "a:min"], "--metric a is given with two directions"),
        (["a", "--patience", "0"], "argument --patience: '0' is not a whole number of at least 1"),
    ],
)
def test_wrong_calls(refused, arguments, text):
    assert refused(*arguments) == text


class TestConfig:
    """The section `rules` of a file."""

    @pytest.fixture
    def write(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return lambda text: (tmp_path / "hps.yaml").write_text(text)

    def test_its_rules_in_words(self, check, write):
        write(
            "hps: {epochs: 3, optimizer: {type: project.optimizers.Own, lr: 0.1}}\n"
            "data: {folder: texts}\n"
            "rules:\n"
            "  save:\n"
            "    - accuracy\n"
            "    - {rule: valid_loss, name: lowest, patience: 1, saving_below: 0.5, saving_above: -.inf}\n"
            "  checkpoint_every: 2 epochs\n"
            "  stop_when: stalled(accuracy, 3)\n"
        )
        status, out, err = check("f1", "--config", "hps.yaml", "--patience", "4", *TWO)
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            "best_accuracy: saves when accuracy is higher than at its last save; "
            "asks to stop after 4 evaluations without improvement",
            "lowest: saves when valid_loss is lower than at its last save, above -inf, below 0.5; "
            "asks to stop after 1 evaluation without improvement",
            "best_f1: saves when f1 is higher than at its last save; "
            "asks to stop after 4 evaluations without improvement",
            "stop_when: stops as soon as stalled(accuracy, 3)",
            "checkpoint_every: checkpoints every 2 epochs",
        ]

    def test_its_mistakes_beside_others(self, check, write):
        write("rules: {save: [accuracy, acc@], stop_wen: 1}")
        status, out, err = check("f1 by 0", "--config", "hps.yaml")
        assert (status, out) == (1, "")
        assert err == (
            "2 mistakes in hps.yaml:\n"
            "  rules.stop_wen: unknown key, did you mean 'stop_when'? "
            "Allowed are save, checkpoint_every, evaluate_every, stop_when, held_out, replicates\n"
            "  rules.save[1]: something is missing at the end\n"
            "      acc@\n"
            "          ^\n"
            "    allowed here: a dataset\n"
            "\n"
            "the improvement after 'by' must be positive\n"
            "    f1 by 0\n"
            "          ^\n"
        )

    def test_mistakes_of_both_sections(self, check, write):
        write(
            "hps: {epochs: 0, batchsize: 8, optimizer: {type: Adam, lrr: 1}}\n"
            "rules: {saves: [best_valid_loss], stop_when: valid_los <}\n"
        )
        status, out, err = check("--config", "hps.yaml")
        assert (status, out) == (1, "")
        assert [line.split(": ")[0].strip() for line in err.splitlines() if line.startswith("  ") and ": " in line] == [
            "hps.batchsize",
            "hps.epochs",
            "hps.optimizer.lrr",
            "rules.saves",
            "rules.stop_when",
            "allowed here",
        ]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("rulse: {}", "rules: the section is missing; is 'rulse' a typing error?"),
            ("epochs: 1", "rules: the section is missing; the file has: epochs"),
            ("rules: [a]", "rules: must be a mapping, not ['a'] (list)"),
            ("[1]", "the file must be a mapping with hps and rules, or with the hyperparameters, not [1] (list)"),
        ],
    )
    def test_no_section(self, check, write, text, said):
        write(text)
        assert check("--config", "hps.yaml") == (1, "", f"1 mistake in hps.yaml:\n  {said}\n")

    def test_no_file(self, check, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        status, _, err = check("--config", "no.yaml")
        assert status == 1
        assert err == f"1 mistake in no.yaml:\n  no such file (the current folder is {tmp_path})\n"


@pytest.mark.parametrize("rule", ["best_accuracy by 0.01", "best_accuracy / f1@ood"])
def test_a_rule_that_the_shell_has_split(check, capsys, rule):
    with pytest.raises(SystemExit) as ended:
        check(*rule.split())
    assert ended.value.code == 2
    assert f'a rule of several words is one argument: "{rule}"' in capsys.readouterr().err


def test_a_dataset_with_the_name_of_a_file(check):
    status, out, _ = check("best_accuracy@dev.yaml", "--metric", "accuracy:max@dev.yaml")
    assert (status, out) == (
        0,
        "best_accuracy@dev.yaml: saves when accuracy@dev.yaml is higher than at its last save\n",
    )
