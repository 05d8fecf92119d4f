"""The figure of a history: in a notebook, in a script, in a file."""

import subprocess
import sys

import pytest
from PIL import Image

from accmt import TrainingHistory
from accmt.rules import Observation, Progress
from accmt.tracking import history as module


@pytest.mark.proves("TrainingHistory.plot", "TrainingHistory(savings)")
def test_axes_for_each_metric_and_marks_where_a_rule_saved(trainer, regression, data, error_metric):
    training = trainer(epochs=3, metrics=error_metric())
    training.register_model_saving("error@a", saving_below=0, name="never")
    training.register_model_saving("valid_loss")
    history = training.fit(regression(), data(12), {"a": data(5, 1), "b": data(5, 2)})
    assert list(history.savings) == ["best_valid_loss"]
    assert TrainingHistory.load(training.model_path).savings == history.savings
    figure = history.plot()
    assert [axes.get_title() for axes in figure.axes] == ["train_loss", "valid_loss", "error"]
    *lines, marks = figure.axes[2].get_lines()
    assert [line.get_label() for line in lines] == ["a", "b"]
    values = [value.value for value in history if (value.metric, value.dataset) == ("error", "b")]
    assert list(lines[1].get_xdata()) == [3, 6, 9]
    assert list(lines[1].get_ydata()) == values
    assert tuple(marks.get_xdata()) == history.savings["best_valid_loss"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["saved by best_valid_loss"]


@pytest.mark.proves("TrainingHistory.plot(path)")
def test_into_a_file(trainer, regression, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = trainer().fit(regression(), data(8))
    history.plot("history.png")
    with Image.open(tmp_path / "history.png") as image:
        assert image.width > 300
        assert len(image.convert("L").getcolors()) > 5
    with pytest.raises(ValueError, match="Format 'nosuch' is not supported"):
        history.plot("history.nosuch")


def test_names_are_drawn_as_they_are():
    """No formula, and no line that a legend leaves out because of its name."""
    values = {"_dev": {"$x": 0.5}, "$y": {"$x": 0.7}}
    figure = TrainingHistory((Observation(Progress(step=1, evaluation=1), values),)).plot()
    axes = figure.axes[1]
    assert axes.get_title() == r"\$x"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [" _dev", r"\$y"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_without_evaluations():
    with pytest.raises(ValueError, match="there is nothing to plot: the training has no evaluation yet"):
        TrainingHistory(()).plot()


def test_without_matplotlib(monkeypatch, trainer, regression, data):
    history = trainer().fit(regression(), data(8))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        history.plot()
    text = "plot needs matplotlib, which is not installed: pip install matplotlib"
    assert str(caught.value) == text


def test_no_pyplot_and_no_window(trainer, regression, data, tmp_path):
    training = trainer()
    training.fit(regression(), data(8))
    folder, picture = str(training.model_path), str(tmp_path / "one.png")
    program = (
        f"import sys; from accmt import TrainingHistory; TrainingHistory.load({folder!r}).plot({picture!r}); "
        "print({'matplotlib.pyplot', 'torch'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
