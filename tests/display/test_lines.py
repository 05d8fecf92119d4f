"""Lines for terminals and pipes, and pictures of a metric."""

import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from accmt.display.lines import aligned, for_shell, sparkline, together, wrapped


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ((), ""),
        ((1.0,), ""),
        ((1.0, 2.0), "▁█"),
        ((0.0, 0.5, 1.0, 0.25), "▁▅█▃"),
        ((3.0, 3.0, 3.0), "▁▁▁"),
        ((1.0, math.nan, 2.0, math.inf), "▁?█?"),
        ((math.nan, math.nan, 1.0), ""),
        ((-1.7e308, 1.7e308), "▁█"),
        (range(8), "▁▂▃▄▅▆▇█"),
    ],
)
def test_sparkline(values, drawn):
    assert sparkline(values) == drawn


def test_a_sparkline_of_many_values_has_the_first_and_the_last():
    drawn = sparkline([5.0, *(0.0 for _ in range(998)), 10.0])
    assert (drawn[0], drawn[-1], len(drawn)) == ("▅", "█", 24)
    assert set(sparkline(range(1000), ascii_only=True)) == set("_.-:=+*#")


def test_lines_are_broken_between_words_only():
    text = "  saved in 'a folder/with blanks', and /a/path/that/is/longer/than/the/line too"
    assert wrapped(text, 24).split("\n") == [
        "  saved in",
        "    'a folder/with blanks',",
        "    and",
        "    /a/path/that/is/longer/than/the/line",
        "    too",
    ]
    assert wrapped(text, None) == text


def test_an_apostrophe_quotes_nothing():
    assert wrapped("torch's own words and a user's words", 16).split("\n") == [
        "torch's own",
        "    words and a",
        "    user's words",
    ]


def test_what_is_kept_together():
    assert wrapped(f"run {together('accmt explain x')} now", 12).split("\n") == [
        "run",
        "    accmt explain x",
        "    now",
    ]
    assert wrapped(together("a b"), None) == "a b"


def test_columns_where_they_fit_and_no_padding_elsewhere():
    rows = [["a", "bbb", "c"], ["aaaa", "", "cc"], ["模", "b", ""]]
    assert aligned(rows, 20) == ["a     bbb  c", "aaaa       cc", "模    b"]
    assert aligned(rows, None) == ["a  bbb  c", "aaaa  cc", "模  b"]
    assert aligned([], 20) == []


def test_folders_for_a_shell(tmp_path, monkeypatch):
    monkeypatch.setattr("accmt.files.paths._STARTED", tmp_path)
    monkeypatch.chdir("/")  # the shell of the user stays where it is
    assert for_shell(tmp_path / "runs/a") == "runs/a"
    assert for_shell(Path("/a b/it's")) == shlex.quote("/a b/it's")


def test_folders_are_relative_to_where_the_process_was_started(tmp_path):
    code = (
        "import os; from pathlib import Path; from accmt.display.lines import for_shell; here = Path.cwd();"
        "os.chdir('/'); print(for_shell(here / 'runs'), for_shell(Path('/other')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "runs /other\n"
