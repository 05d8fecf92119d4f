"""The summary for a terminal."""

import re

from accmt.report.text import summary
from accmt.report.training import Curve, TrainingReport, read_training


def test_one_screen(trained):
    training = read_training(trained)
    lines = list(summary(training, None))
    assert lines[:3] == [
        training.name,
        training.about,
        "Stopped after epoch 8 (step 40): the condition 'epoch >= 8' holds.",
    ]
    assert re.fullmatch(
        rf"best_valid_loss@dev +valid_loss@dev \S+ █[▁-█]{{7}} +{trained}/best_valid_loss@dev", lines[4]
    )
    assert re.search(r"  error@dev \S+ █[▁-█]{7}, error@test \S+ █[▁-█]{7}  ", lines[6])
    assert [line.split("  ")[0] for line in lines[8:]] == [
        *("valid_loss@dev", "error@dev", "valid_loss@test", "error@test"),
        *("train_loss", "learning rate", "gradient norm", "seconds per step"),
    ]
    assert max(map(len, summary(training, 60, ascii_only=True))) < 10_000
    assert all("█" not in line for line in summary(training, 60, ascii_only=True))


def test_many_curves_are_cut():
    curves = tuple(Curve(f"m{number}", "", (1, 2), (0.1, 0.2)) for number in range(20))
    lines = list(summary(TrainingReport("many", "About.", "Ended", curves=curves), 80))
    assert lines[-1] == "and 8 more, which the page shows"
    assert len(lines) <= 24


def test_hostile_names_do_not_steer_the_terminal(hostile):
    text = "\n".join(summary(read_training(hostile), 80))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]", text)
    assert len(text) < 5000
