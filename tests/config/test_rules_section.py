"""The section `rules` of a configuration: its forms, its mistakes, and what a trainer makes of it."""

import json
import subprocess
import sys

import pytest

from accmt import ConfigError, HyperParameters, Trainer
from accmt.config.rules import RuleSection, read_rules
from accmt.rules import CadenceRule, SavingRule, StopCondition


def refusal(section):
    with pytest.raises(ConfigError) as raised:
        read_rules(section, "hps.yaml")
    return str(raised.value)


def test_all_forms():
    section = {
        "save": [
            "accuracy@dev",
            {"rule": "valid_loss by 1%", "name": "low", "patience": 5, "saving_below": 0.5, "saving_above": None},
        ],
        "checkpoint_every": "500 steps",
        "evaluate_every": "epoch",
        "stop_when": ["valid_loss < 0.1", "epoch > 3"],
    }
    assert read_rules(section) == RuleSection(
        (
            SavingRule.parse("accuracy@dev"),
            SavingRule.parse("valid_loss by 1%", name="low", patience=5, saving_below=0.5),
        ),
        (StopCondition.parse("valid_loss < 0.1"), StopCondition.parse("epoch > 3")),
        CadenceRule.parse("epoch"),
        CadenceRule.parse("500 steps"),
        says_checkpoint=True,
    )


def test_one_instead_of_a_list():
    alone = read_rules({"save": "accuracy", "stop_when": "epoch > 3"})
    assert alone == read_rules({"save": ["accuracy"], "stop_when": ["epoch > 3"]})
    assert read_rules({"save": {"rule": "accuracy"}}) == read_rules({"save": ["accuracy"]})


@pytest.mark.parametrize("section", [{}, {"save": None, "stop_when": None, "evaluate_every": None}, {"save": []}])
def test_nothing(section):
    assert read_rules(section) == RuleSection()


def test_never_to_checkpoint():
    assert read_rules({"checkpoint_every": None}) == RuleSection(says_checkpoint=True)


def test_all_mistakes_with_their_places():
    section = {
        "saves": [],
        1: 2,
        "save": [
            "accuracy",
            "accuracy@",
            7,
            {"rule": "f1 by 0 keep 0", "patience": 0},
            {"rule": "f1", "patience": "3", "nam": "x", "saving_below": True},
            {"name": 5},
            {"rule": ["f1"]},
            {"rule": "f1", "name": "a/b"},
            {"rule": "f1", "saving_below": 1, "saving_above": 2},
        ],
        "checkpoint_every": 500,
        "evaluate_every": "2 epoks",
        "stop_when": ["accuracy", {}],
    }
    allowed = "Allowed are save, checkpoint_every, evaluate_every, stop_when, held_out, replicates"
    in_rule = "Allowed are rule, name, patience, saving_below, saving_above"
    assert refusal(section).splitlines() == [
        "19 mistakes in hps.yaml:",
        f"  rules.saves: unknown key, did you mean 'save'? {allowed}",
        f"  rules.1: unknown key. {allowed}",
        "  rules.save[1]: something is missing at the end",
        "      accuracy@",
        "               ^",
        "    allowed here: a dataset",
        "  rules.save[2]: must be a string, or a mapping with 'rule', not 7 (int)",
        "  rules.save[3]: the improvement after 'by' must be positive",
        "      f1 by 0 keep 0",
        "            ^",
        "  rules.save[3]: 'keep' takes a positive whole number",
        "      f1 by 0 keep 0",
        "                   ^",
        "    keep 1 is the default: only the best",
        "  rules.save[3]: the patience of 'f1 by 0 keep 0' is 0",
        "    a whole number from 1 belongs there",
        f"  rules.save[4].nam: unknown key, did you mean 'name'? {in_rule}",
        "  rules.save[4].patience: must be a whole number from 1, not '3' (str)",
        "  rules.save[4].saving_below: must be a number, not True (bool)",
        "  rules.save[5].rule: missing. Write the rule, such as 'rule: best_valid_loss'",
        "  rules.save[5].name: must be a string, not 5 (int)",
        "  rules.save[6].rule: must be a string, not ['f1'] (list)",
        "  rules.save[7]: 'a/b' is not a name for a rule",
        "    letters, digits, '_', '-' and '.', not starting with '.', at most 100 characters",
        "  rules.save[8]: 'f1' would save above 2 and below 1: no value is",
        "    saving_above must be less than saving_below",
        "  rules.checkpoint_every: must be a string, not 500 (int)",
        "  rules.evaluate_every: unknown unit 'epoks'",
        "      2 epoks",
        "        ^^^^^",
        "    the units are: steps, epochs, evaluations, samples, seconds, minutes, hours and %",
        "    did you mean 'epochs'?",
        "  rules.stop_when[0]: a condition belongs here, and this is a number",
        "      accuracy",
        "      ^^^^^^^^",
        "    compare it: accuracy > 0.5",
        "  rules.stop_when[1]: must be a string, not {} (dict)",
    ]


def test_torch_is_not_imported(tmp_path):
    (tmp_path / "hps.yaml").write_text("rules: {save: [accuracy]}")
    code = (
        "import sys, accmt.config.document as d, accmt.config.rules as r\n"
        "section, problems = d.rules_of(d.read_document('hps.yaml'))\n"
        "print(r.read_rules(section).savings[0].name, problems)\n"
        "print([name for name in ('torch', 'numpy', 'accelerate', 'pydantic') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "best_accuracy []\n[]\n"


class TestTrainer:
    """What a trainer makes of the rules of a file."""

    RULES = """
      save: [best_valid_loss, {rule: error@0 keep 2, name: close, patience: 9}]
      checkpoint_every: 3 steps
      evaluate_every: 2 steps
      stop_when: step > 1000
    """

    @pytest.fixture
    def described(self, tmp_path, regression, data, error_metric):
        """Rules as YAML and arguments -> what the training was told, after it ran."""

        def run(rules, register=(), **arguments):
            path = tmp_path / "hps.yaml"
            path.write_text(f"hps: {{epochs: 2, batch_size: 4}}\nrules:{rules}")
            training = Trainer(path, tmp_path / "model", metrics=error_metric(), dataloader_num_workers=0, **arguments)
            for rule in register:
                training.register_model_saving(rule)
            training.fit(regression(), data(22), data(6))
            return training, json.loads((training.model_path / "training.json").read_text())

        return run

    def test_the_file_alone(self, described):
        training, description = described(self.RULES)
        assert description["rules"] == {
            "writes": True,
            "save": [
                {"rule": "best_valid_loss", "name": None, "patience": None, "saving_below": None, "saving_above": None},
                {"rule": "error@0 keep 2", "name": "close", "patience": 9, "saving_below": None, "saving_above": None},
            ],
            "checkpoint_every": "3 steps",
            "evaluate_every": "2 steps",
            "stop_when": ["step > 1000"],
        }
        assert [decision.progress.step for decision in training.decisions] == [2, 4, 6, 8, 10, 12]
        assert training.best("close").step > 0

    def test_rules_that_are_registered_come_after(self, described):
        _, description = described(self.RULES, register=["train_loss"], patience=4)
        rules = [(rule["rule"], rule["patience"]) for rule in description["rules"]["save"]]
        assert rules == [("best_valid_loss", 4), ("error@0 keep 2", 9), ("train_loss", 4)]

    def test_arguments_go_before(self, described):
        _, description = described(
            self.RULES, checkpoint_every="2 epochs", evaluate_every="4 steps", stop_when=["epoch > 5"]
        )
        rules = description["rules"]
        del rules["save"], rules["writes"]
        assert rules == {"checkpoint_every": "2 epochs", "evaluate_every": "4 steps", "stop_when": ["epoch > 5"]}

    def test_evaluations_in_steps_go_before(self, described):
        assert described(self.RULES, evaluate_every_n_steps=5)[1]["rules"]["evaluate_every"] == "5 steps"

    def test_no_argument_and_no_line_in_the_file(self, described):
        _, description = described(" {save: valid_loss}")
        rules = description["rules"]
        assert (rules["checkpoint_every"], rules["evaluate_every"], rules["stop_when"]) == ("epoch", "epoch", [])

    @pytest.mark.parametrize("arguments", [{}, {"checkpoint_every": "epoch"}])
    def test_the_file_says_never(self, described, arguments):
        training, description = described(" {checkpoint_every: null}", **arguments)
        assert description["rules"]["checkpoint_every"] is None
        assert not (training.model_path / "checkpoints").exists()

    def test_the_argument_says_never(self, described):
        assert described(self.RULES, checkpoint_every=None)[1]["rules"]["checkpoint_every"] is None

    def test_the_last_evaluation_of_a_cadence_of_the_file(self, described):
        training, _ = described(" {evaluate_every: 5 steps}")
        assert [decision.progress.step for decision in training.decisions] == [5, 10, 12]

    def test_a_rule_in_both(self, described):
        with pytest.raises(ValueError, match="the rule 'best_valid_loss' is registered twice"):
            described(self.RULES, register=["valid_loss"])

    def test_a_dictionary(self, tmp_path):
        trainer = Trainer({"epochs": 1, "rules": {"save": "accuracy"}}, tmp_path)
        with pytest.raises(ConfigError, match="module: must be an AcceleratorModule"):
            trainer.fit(None)
        Trainer(HyperParameters(1), tmp_path)

    def test_mistakes_beside_those_of_the_constructor(self, tmp_path):
        with pytest.raises(ConfigError) as caught:
            Trainer(
                {"epochs": 1, "rules": {"save": ["acc@"], "stop": 1}}, tmp_path, patience=-2, stop_when="valid_loss <"
            )
        assert str(caught.value) == (
            "4 mistakes in Trainer(...):\n"
            "  rules.stop: unknown key, did you mean 'stop_when'? "
            "Allowed are save, checkpoint_every, evaluate_every, stop_when, held_out, replicates\n"
            "  rules.save[0]: something is missing at the end\n"
            "      acc@\n"
            "          ^\n"
            "    allowed here: a dataset\n"
            "  patience: must be a whole number from 1, not -2 (int)\n"
            "  something is missing at the end\n"
            "    valid_loss <\n"
            "                ^\n"
            "  allowed here: a metric or a number"
        )
