"""The command itself: its help, suggestions for what is misspelt, and hints that speak of the command line."""

import pytest

from accmt.cli.main import main


@pytest.fixture
def call(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return run


def test_alone_it_shows_its_help(call):
    status, out, err = call()
    assert (status, out) == (2, "")
    assert err == call("--help")[1]
    assert "explain show what a training decided, and why" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["explian", "runs"],
            "accmt: error: there is no command 'explian', did you mean 'explain'? Commands are check, explain, replay, "
            "report, sweep, checkpoints, weights, sync, rehearse, seeds, launch, strats",
        ),
        (
            ["xyz"],
            "accmt: error: there is no command 'xyz'. Commands are check, explain, replay, report, sweep, checkpoints, "
            "weights, sync, rehearse, seeds, launch, strats",
        ),
        (["--verson"], "accmt: error: unrecognized arguments: --verson, did you mean --version?"),
        (["explain", "runs", "--jsn"], "accmt explain: error: unrecognized arguments: --jsn, did you mean --json?"),
        (["explain", "a", "--rul=x"], "accmt explain: error: unrecognized arguments: --rul=x, did you mean --rule?"),
        (["launch", "--devices", "x"], "accmt launch: error: unrecognized arguments: --devices"),
        (["explain", "a", "--qqq", "b"], "accmt explain: error: unrecognized arguments: --qqq b"),
        (
            ["launch", "--strt", "ddp", "x"],
            "accmt launch: error: unrecognized arguments: --strt, did you mean --strat?",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_misspelt(call, arguments, said):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == said


DIRECTION = "\n\nOn the command line, give the direction with --metric, such as --metric accuracy:max\n"
NAMES = "\n\nOn the command line, rules have names in a file: give it with --config\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["acc:max"], DIRECTION),
        (["best_acc@dev:max"], DIRECTION),
        (["acc:min keep 2"], DIRECTION),
        (["best_acc", "--metric", "acc"], DIRECTION),
        (["best_acc", "best_acc"], NAMES),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_hints_speak_of_the_command_line(call, arguments, hint):
    status, out, err = call("check", *arguments)
    assert (status, out) == (1, "")
    assert err.endswith(hint)
    assert err.count("On the command line") == 1


def test_other_mistakes_have_no_hint(call):
    for rule in ("best_acc:maximum", "best_acc@", "best_acc; x"):
        assert "On the command line" not in call("check", rule)[2]


@pytest.mark.parametrize("command", ["check", "explain", "replay", "checkpoints", "weights", "sync", "launch"])
@pytest.mark.parametrize("columns", [60, 100])
def test_help_is_as_wide_as_the_terminal(call, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = call(command, "--help")
    described = out.split("\n\n")[1].splitlines()
    assert status == 0
    assert max(map(len, described)) <= columns - 2
    assert max(map(len, described)) > 0.7 * columns  # and filled
