"""The page of the command line: its commands give what it shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import Trainer
from accmt.config.document import read_document, rules_of
from accmt.config.rules import read_rules
from accmt.rules import Facts, Length, Observation, Progress, Reported, RuleEngine, Rules, check
from accmt.tracking.journal import Journal
from accmt.tracking.training_file import Description, write_description

PAGE = (Path(__file__).parent.parent.parent / "docs" / "reference" / "command-line.md").read_text()
FILES = re.findall(r"```(?:yaml|csv)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
SESSIONS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
SCORES = ((0.50, 0.90), (0.70, 0.70), (0.66, 0.695), (0.72, 0.71))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files of the page, a training by its rules as it is recorded, and one with its weights."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in FILES:
        (folder / name).write_text(text)
    section = read_rules(rules_of(read_document(folder / "hps.yaml"))[0])
    rules = Rules(section.savings, section.stop_when, section.evaluate, section.checkpoint)
    metrics = {"accuracy": Reported(("dev",), True), "valid_loss": Reported(("dev",), False)}
    facts = Facts(metrics, ("dev",), Length(600, 100, 32))
    check(rules, facts)
    model = folder / "runs" / "model"
    model.mkdir(parents=True)
    write_description(model, Description(rules, facts, -1))
    engine, history, decisions = (
        RuleEngine(rules, facts),
        Journal(model / "history.jsonl"),
        Journal(model / "decisions.jsonl"),
    )
    for number, (accuracy, loss) in enumerate(SCORES, 1):
        progress = Progress(100 * number, number, 0, number, 3200 * number, 9.5 * number)
        observation = Observation(progress, {"dev": {"accuracy": accuracy, "valid_loss": loss}}, loss)
        history.append(observation.to_json())
        decisions.append(engine.after_evaluation(observation).to_json())
    digits = TensorDataset(torch.rand(320, 64), torch.arange(320) % 10)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    training = Trainer({"epochs": 1, "batch_size": 32}, folder / "runs" / "digits", quiet=True)
    training.fit(network, digits, digits, loss_fn=nn.functional.cross_entropy)
    return folder


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.split("\n")[0])
def test_the_commands_of_the_page(session, folder):
    commands = re.findall(r"^\$ (.*)$", session, re.MULTILINE)
    shown = re.sub(r"^\$ .*\n", "", session, flags=re.MULTILINE)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    ran = subprocess.run(
        ["bash", "-c", "\n".join(commands)],
        cwd=folder,
        env={"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.stdout == shown


def test_there_is_something_to_test():
    assert len(FILES) == 2
    assert len(SESSIONS) == 11
