"""Reports that a trainer writes: after each evaluation, at the end to the trackers, and when it is asked."""

import pytest

from accmt import Callback
from accmt.hyperparameters import ConfigError
from accmt.report import live


class Reads(Callback):
    """Looks at the report after each evaluation."""

    def __init__(self):
        self.seen = []

    def on_evaluation_end(self):
        path = self.trainer.model_path / "report.html"
        self.seen.append(path.read_text() if path.exists() else None)


@pytest.mark.proves("Trainer(report)")
def test_it_is_written_after_each_evaluation(trainer, regression, data, monkeypatch):
    monkeypatch.setattr(live, "_MOST_OF_TIME", 1e9)
    reads = Reads()
    training = trainer(report=True, callback=reads, epochs=3)
    training.fit(regression(), data(8), data(4))
    assert ["evaluation 3" in text for text in reads.seen] == [False, False, True]
    assert "At step 2: it is still running" in reads.seen[0]
    assert "Trained to its end, step 6" in (training.model_path / "report.html").read_text()
    assert not list(training.model_path.glob(".tmp-*"))


def test_it_is_written_less_often_if_it_takes_long(trainer, regression, data, monkeypatch):
    monkeypatch.setattr(live, "_MOST_OF_TIME", 0.0)
    reads = Reads()
    training = trainer(report=True, callback=reads, epochs=3)
    training.fit(regression(), data(8), data(4))
    assert len(set(reads.seen)) == 1
    assert "Trained to its end" in (training.model_path / "report.html").read_text()


@pytest.mark.proves("Trainer(report)")
def test_it_is_sent_to_trackers_at_the_end(trainer, regression, data, tmp_path):
    training = trainer(report=True, log_with="tensorboard", logging_dir=str(tmp_path / "logs"))
    training.fit(regression(), data(8), data(4))
    [sent] = (tmp_path / "logs").rglob("report.html")
    assert sent.read_text() == (training.model_path / "report.html").read_text()


def test_without_it_no_page_is_written(trainer, regression, data):
    training = trainer()
    training.fit(regression(), data(8), data(4))
    assert not (training.model_path / "report.html").exists()
    assert (training.model_path / "log.jsonl").exists()


@pytest.mark.proves("Trainer.report", "Trainer.report(path)")
def test_a_trainer_writes_it_when_asked(trainer, regression, data, tmp_path):
    training = trainer()
    with pytest.raises(FileNotFoundError, match="is not the folder of a training: it has no history"):
        training.report()
    training.fit(regression(), data(8), data(4))
    assert training.report().path == training.model_path / "report.html"
    report = training.report(tmp_path / "other.html")
    assert report.path.read_text().startswith("<!doctype html>")
    assert report._repr_html_().startswith('<iframe sandbox="allow-scripts" title="Report"')


def test_missing_libraries_are_said_before_the_first_step(trainer, regression, data, monkeypatch):
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        trainer(report=True)
    assert str(caught.value).endswith("report: needs jinja2 and plotly: pip install jinja2 plotly")
    training = trainer()
    training.fit(regression(), data(8))
    with pytest.raises(ModuleNotFoundError) as missing:
        training.report()
    assert str(missing.value) == "a report needs jinja2 and plotly: pip install jinja2 plotly"


def test_a_report_that_cannot_be_written_is_a_warning(trainer, regression, data, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live, "replace_file", refuse)
    training = trainer(report=True)
    training.fit(regression(), data(8), data(4))
    assert training.state.finished
    assert "warning: report.html was not written: No space left on device" in capsys.readouterr().out
