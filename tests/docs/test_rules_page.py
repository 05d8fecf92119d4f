"""Every example of docs/reference/rules.md is true."""

import doctest
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from accmt import AcceleratorModule, Trainer
from accmt.rules import CadenceRule, parse_saving

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "reference" / "rules.md").read_text()


def load_script():
    spec = importlib.util.spec_from_file_location("rule_script_of_docs", ROOT / "tests" / "rules" / "script.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCRIPTS = re.findall(r"```rule\n(.*?)```", PAGE, re.DOTALL)
LOGGING, SCHEDULING = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SESSIONS = "\n".join(re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL))


def test_rules_of_the_table_are_sentences_of_the_language():
    table = PAGE.split("| written | the model is saved")[1].split("\n\n")[0]
    rules = [rule for row in table.splitlines()[2:] for rule in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(rules) >= 7
    for rule in rules:
        assert parse_saving(rule).name.startswith("best_")


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_examples(number, tmp_path):
    path = tmp_path / f"example{number}.rule"
    path.write_text(SCRIPTS[number])
    cases = load_script().read(path)
    assert cases
    for case in cases:
        saved, stopped = [], 0
        for decision in case.decisions():
            saved += [decision.progress.evaluation] * len(decision.saved)
            if decision.stop is not None:
                stopped = decision.progress.evaluation
                break
        assert case.saves in (None, saved), case.text
        assert case.stops in (None, stopped), case.text


def test_sessions():
    test = doctest.DocTestParser().get_doctest(SESSIONS, {}, "docs/reference/rules.md", None, 0)
    output = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
    assert runner.tries > 8


def test_cadences_of_the_table():
    table = PAGE.split("| written | due |")[1].split("\n\n")[0]
    cadences = [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(cadences) > 10
    for text in cadences:
        CadenceRule.parse(text)


def test_what_a_module_logs_is_ranked(tmp_path, regression, data):
    class Module(regression, AcceleratorModule):
        def losses(self, batch):
            loss = super().training_step(batch)
            return loss, loss / 2

        exec(LOGGING)

    trainer = Trainer({"batch_size": 8}, tmp_path / "model", training_metrics={"kl": "min"}, quiet=True)
    trainer.register_model_saving("best_kl")
    trainer.fit(Module(), data(16))
    assert trainer.best().values["kl"] > 0


def test_a_scheduler_that_follows_a_metric(tmp_path, monkeypatch, regression, data):
    monkeypatch.chdir(tmp_path)
    exec(SCHEDULING, {"Trainer": lambda *given, **named: Trainer(*given, **named).fit(regression(), data(4), data(4))})
    assert (tmp_path / "model" / "best_valid_loss").is_dir()
