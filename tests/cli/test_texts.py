"""No command writes what steers a terminal, whatever the files, the names and the arguments are."""

import json
import os
import re

import pytest

from accmt.cli.main import main
from accmt.rules import Decision, Observation, Outcome, Progress
from accmt.rules.decision import KeptModel, Stop, Verdict
from accmt.tracking.outbox import FOLDER, Outbox
from accmt.tracking.records import Recipient, SentPosition
from accmt.tracking.tracker import Logged

EVIL = "\x1b[2J\x1b]0;x\x07\x9b1m\u202e\r\nfaked [bold]line[/bold]"
SHOWN = r"\x1b[2J\x1b]0;x\x07\x9b1m\u202e\r\nfaked [bold]line[/bold]"


@pytest.fixture
def evil(tmp_path):
    """A folder of a training in which every name and text is evil."""
    folder = tmp_path / "model"
    folder.mkdir()
    now = Progress(1, 1, 0, 1, 0, 1.0)
    made = Verdict(EVIL, (1.0,), None, Outcome.SAVED, EVIL, -1, (KeptModel((1.0,), 1, 1),))
    decision = Decision(now, (made,), stop=Stop("rule", EVIL))
    observation = Observation(now, {EVIL: {EVIL: 1.0, "valid_loss": 1.0}})
    (folder / "decisions.jsonl").write_text(json.dumps(decision.to_json()) + "\n")
    (folder / "history.jsonl").write_text(json.dumps(observation.to_json()) + "\n")
    return folder


def shown(capfd, *arguments):
    """The status and all that was written. Only who calls may begin a line, by an argument."""
    capfd.readouterr()
    try:
        status = main(list(map(str, arguments)))
    except SystemExit as ended:
        status = ended.code
    out, err = capfd.readouterr()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out + err), (out, err)
    if not any("\n" in str(argument) for argument in arguments):
        assert not re.search("^faked", out + err, re.MULTILINE), (out, err)
    return status, out + err


def test_decisions(evil, capfd):
    status, text = shown(capfd, "explain", evil)
    assert (status, SHOWN in text) == (0, True)
    for form in ("--json", "--csv"):
        assert shown(capfd, "explain", evil, form)[0] == 0
    status, text = shown(capfd, "explain", evil, "--rule", "other\x1b")
    assert (status, SHOWN in text) == (1, True)


def test_report(evil, capfd):
    status, text = shown(capfd, "report", evil, "--text")
    assert (status, SHOWN in text) == (0, True)
    (evil / "history.jsonl").write_text(EVIL + "\n")
    assert shown(capfd, "report", evil, "--text")[0] == 1
    assert shown(capfd, "report", f"mlflow:{EVIL}", "--tracking-uri", evil.parent)[0] == 1


def test_replay(evil, capfd):
    status, text = shown(capfd, "replay", evil, "--rule", "best_valid_loss")
    assert status == 0
    for arguments in (["--rule", f"best_{EVIL}"], ["--metric", "no\x1b:max"], ["--rule", "best_other"]):
        status, text = shown(capfd, "replay", evil, *arguments)
        assert (status, "faked" in text) == (1, True)
    assert shown(capfd, "replay", evil, "--rule", "best_valid_loss", "--json")[0] == 0
    (evil / "history.jsonl").write_text(EVIL + "\n")
    assert shown(capfd, "replay", evil)[0] == 1
    (evil / "training.json").write_text(json.dumps({"schema": EVIL}))
    assert shown(capfd, "replay", evil)[0] == 1


def test_names_of_folders_and_files(evil, capfd, tmp_path):
    (tmp_path / EVIL.replace("/", "")).mkdir()
    (evil / "checkpoints").mkdir()
    (evil / "checkpoints" / EVIL.replace("/", "")).mkdir()
    assert shown(capfd, "checkpoints", evil)[0] in (0, 1)
    assert shown(capfd, "checkpoints", evil, "--json")[0] in (0, 1)
    for command in ("explain", "checkpoints", "sync", "replay"):
        assert shown(capfd, command, tmp_path / EVIL.replace("/", ""))[0] == 1
        assert shown(capfd, command, tmp_path / f"no {EVIL}")[0] == 1


def test_what_waits(evil, capfd):
    outbox = Outbox(evil)
    outbox.read_by(SentPosition(Recipient(EVIL, "1", EVIL, EVIL, {}, {EVIL: EVIL}, 0)))
    outbox.add(Logged({EVIL: 1.0}, 1, 1))
    outbox.release()
    (evil / FOLDER / "0009.jsonl").write_text(f'{{"outbox": "{EVIL!r}"}}\n{EVIL}\n')
    status, text = shown(capfd, "sync", evil)
    assert (status, SHOWN in text) == (1, True)
    status, text = shown(capfd, "sync", evil, "--to", EVIL)
    assert (status, SHOWN in text) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", f"best_{EVIL}"],
        ["check", "best_x", "--metric", EVIL],
        ["check", "best_x", "--patience", EVIL],
        ["check", "--config", EVIL],
        ["check", "best_x@dev", "--metric", "x:max", "--dataset", EVIL],
        [EVIL],
        ["explain", "x", EVIL],
        ["sync", "x", "--timeout", "http://me:secret@host/" + EVIL],
        ["launch", EVIL],
        ["launch", "--master", EVIL, "x"],
    ],
)
def test_arguments(arguments, capfd):
    status, text = shown(capfd, *arguments)
    assert status in (1, 2)
    assert "secret" not in text


def test_files_of_rules(tmp_path, capfd):
    file = tmp_path / "hps.yaml"
    for content in ({EVIL: 1}, {"rules": {EVIL: 1}}, {"rules": {"save": [f"best_{EVIL}"]}}, {"rules": EVIL}):
        file.write_text(json.dumps(content))
        assert shown(capfd, "check", "--config", file)[0] == 1


def test_pipes_links_and_large_files_hold_nothing_up(evil, capfd, tmp_path):
    (tmp_path / "elsewhere").write_text("{}\n")
    for name, command in (("decisions.jsonl", "explain"), ("training.json", "replay"), ("history.jsonl", "replay")):
        path = evil / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        assert shown(capfd, command, evil)[0] == 1
        assert shown(capfd, "checkpoints", evil)[0] == 0
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")
        status, text = shown(capfd, command, evil)
        assert (status, "it is a link, and must be a file" in text) == (1, True)
        path.unlink()
        path.touch()
        os.truncate(path, 2**40)
        status, text = shown(capfd, command, evil)
        assert (status, "bytes, and at most" in text) == (1, True)
        path.unlink()
