"""A whole training on a pseudo-terminal: what a person sees there, line by line."""

import os
import pty
import re
import sys
import threading

import pytest

SEQUENCE = re.compile(r"\x1b\[(?:\??[0-9;]*[A-GKhlm])")  # colours, moves of the cursor, erased lines
BAR = re.compile(r"^epoch (\S+) [━╸╺]+ \d+/8\b.*")


@pytest.fixture
def seen(monkeypatch):
    """(width, action) -> what a terminal of this width gets while the action runs."""

    def run(width, action):
        master, slave = pty.openpty()
        pieces = []

        def read():
            while True:
                try:
                    piece = os.read(master, 65536)
                except OSError:  # the other end is closed
                    return
                pieces.append(piece)

        reader = threading.Thread(target=read)
        reader.start()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        with monkeypatch.context() as patch, open(slave, "w", encoding="utf-8") as terminal:
            patch.setattr(sys, "stdout", terminal)
            action()
        reader.join(60)
        os.close(master)
        return b"".join(pieces).decode()

    return run


@pytest.mark.parametrize("width", [40, 80, 120])
def test_each_line_fits_and_no_path_is_broken(trainer, regression, data, seen, width, tmp_path, monkeypatch):
    monkeypatch.setattr("accmt.files.paths._STARTED", tmp_path)
    training = trainer("my model", epochs=2)
    output = seen(width, lambda: training.fit(regression(), data(16), data(8)))
    lines = re.split(r"\r?\n|\r", SEQUENCE.sub("", output))
    bars = [match for line in lines if (match := BAR.match(line))]
    assert bars[-1].group(1) == "2/2"
    if width > 40:
        assert re.search(r"  loss \S+  \S+ steps/s, 0:00 left  lr 0.05$", bars[-1].group())
    assert all(len(line.rstrip()) <= width for line in lines)
    assert any(line.endswith("'my model'") for line in lines if line.startswith("writes to"))
    assert any(line.endswith("'my model/best_valid_loss'") for line in lines)
    assert any(line.endswith("accmt explain 'my model'") for line in lines)
    assert "valid: valid_loss " in re.sub(r"\s+", " ", "".join(lines))


def test_after_an_early_stop_the_bar_says_the_epochs_that_were_done(trainer, regression, data, seen):
    output = seen(80, lambda: trainer(epochs=5, stop_when="epoch >= 2").fit(regression(), data(16), data(8)))
    bars = re.findall(r"epoch (\S+) [━╸╺]+ (\d+)/20\b", SEQUENCE.sub("", output))
    assert bars[-1] == ("2/5", "8")


def test_names_of_the_user_never_steer_the_terminal(trainer, regression, data, seen, tmp_path):
    evil = "dev\x1b[2J\x07\x9b31m"
    model_path = "a\x1b]0;title\x07b"
    output = seen(80, lambda: trainer(model_path, epochs=1).fit(regression(), data(16), {evil: data(8)}))
    assert r"dev\x1b[2J\x07\x9b31m" in output
    assert not re.search("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f]", SEQUENCE.sub("", output))
