"""Each field of the monitor is sent when it is on, and only then."""

import psutil
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from accmt import Monitor
from accmt.loop import utilization as module
from accmt.loop.utilization import begin_measuring, utilization

FIELDS = {
    "learning_rate": {"learning_rate"},
    "epoch": {"epoch"},
    "train_loss": {"my_loss"},
    "validation_loss": {"my_val_loss"},
    "additional_metrics": {"error"},
    "grad_norm": {"grad_norm"},
    "gpu_utilization": {"gpu_utilization", "gpu_utilization_percent"},
    "cpu_utilization": {"cpu_utilization", "cpu_utilization_percent"},
    "checkpoint": {"checkpoint"},
}
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Recorder(GeneralTracker):
    name = "recorder"
    requires_logging_directory = False

    def __init__(self, project):
        super().__init__()

    @property
    def tracker(self):
        return None

    def log(self, values, step=None, **kwargs):
        LOGGED.extend((step, name, value) for name, value in values.items())


LOGGED: list = []


@pytest.fixture(autouse=True)
def _recorder(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    LOGGED.clear()


@pytest.fixture
def monitored(trainer, regression, data, error_metric):
    """A monitor -> the names that a training sends."""

    def train(monitor, **arguments):
        LOGGED.clear()
        names = {"train_loss_metric_name": "my_loss", "val_loss_metric_name": "my_val_loss"}
        training = trainer(log_with="recorder", monitor=monitor, metrics=error_metric(), **names, **arguments)
        training.fit(regression(), data(8), data(4))
        return {name for _, name, _ in LOGGED}

    return train


def only(*fields):
    return dict.fromkeys(FIELDS, False) | dict.fromkeys(fields, True)


@pytest.fixture
def gpu(monkeypatch):
    """A device that says that it holds 3 GB, and is busy for 40 per cent of the time."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3_000_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 40)


def test_the_fields_are_those_of_the_class():
    assert set(FIELDS) == set(Monitor.__dataclass_fields__)


@pytest.mark.proves(
    "monitor.Monitor(learning_rate)",
    "monitor.Monitor(epoch)",
    "monitor.Monitor(train_loss)",
    "monitor.Monitor(validation_loss)",
    "monitor.Monitor(additional_metrics)",
    "monitor.Monitor(grad_norm)",
    "monitor.Monitor(cpu_utilization)",
    "monitor.Monitor(checkpoint)",
)
@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"gpu_utilization"}))
def test_a_field_alone(monitored, field):
    assert monitored(Monitor(**only(field))) == FIELDS[field]


@pytest.mark.proves(
    "monitor.Monitor(learning_rate)",
    "monitor.Monitor(epoch)",
    "monitor.Monitor(train_loss)",
    "monitor.Monitor(validation_loss)",
    "monitor.Monitor(additional_metrics)",
    "monitor.Monitor(grad_norm)",
    "monitor.Monitor(cpu_utilization)",
    "monitor.Monitor(checkpoint)",
)
@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"gpu_utilization"}))
def test_all_but_a_field(monitored, field):
    others = set(FIELDS) - {field, "gpu_utilization"}
    assert monitored(only(*others)) == {name for other in others for name in FIELDS[other]}


@pytest.mark.proves("Trainer(monitor)", "monitor.Monitor")
@pytest.mark.parametrize("monitor", [None, {}, Monitor()])
def test_by_default(monitored, monitor):
    assert monitored(monitor) == {"epoch", "my_loss", "my_val_loss", "error"}


def test_nothing_at_all(monitored):
    assert monitored(only()) == set()


@pytest.mark.proves("monitor.Monitor")
def test_what_is_sent_while_training_and_what_at_evaluations(monitored):
    monitored(Monitor(True, grad_norm=True, cpu_utilization=True, checkpoint=True), log_every=1, eval_when_start=True)
    steps = {name: [step for step, other, _ in LOGGED if other == name] for _, name, _ in LOGGED}
    training = ("my_loss", "epoch", "learning_rate", "grad_norm", "cpu_utilization", "cpu_utilization_percent")
    assert all(steps[name] == [1, 2, 3, 4] for name in training)
    assert steps["my_val_loss"] == steps["error"] == [0, 2, 4]
    assert steps["checkpoint"] == [2, 4]


def test_utilization_of_the_machine(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 12.5)
    values = utilization(Monitor(cpu_utilization=True, gpu_utilization=True), CPU)
    assert values["cpu_utilization"] == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.2)
    assert values["cpu_utilization_percent"] == 12.5
    assert set(values) == FIELDS["cpu_utilization"]


@pytest.mark.proves("monitor.Monitor(gpu_utilization)")
def test_utilization_of_a_gpu(gpu):
    monitor = Monitor(gpu_utilization=True)
    assert utilization(monitor, GPU) == {"gpu_utilization": 3.0, "gpu_utilization_percent": 40.0}
    assert utilization(Monitor(), GPU) == {}
    assert begin_measuring(monitor, GPU) is None


def test_a_gpu_that_does_not_say_how_busy_it_is(gpu, monkeypatch):
    def unknown(device):
        raise RuntimeError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", unknown)
    assert utilization(Monitor(gpu_utilization=True), GPU) == {"gpu_utilization": 3.0}
    assert begin_measuring(Monitor(gpu_utilization=True), GPU) == (
        "gpu_utilization_percent is not measured: nvidia-ml-py does not seem to be installed"
    )


def test_processors_are_watched_from_the_start(monkeypatch):
    asked = []
    monkeypatch.setattr(module.psutil, "cpu_percent", lambda: asked.append(1))
    assert begin_measuring(Monitor(), GPU) is None
    assert asked == []
    assert begin_measuring(Monitor(cpu_utilization=True), CPU) is None
    assert asked == [1]


@pytest.mark.proves("monitor.Monitor(gpu_utilization)")
def test_a_gpu_that_is_not_there_is_said(monitored, capsys):
    assert monitored(only("gpu_utilization")) == set()
    said = "warning: gpu_utilization is not measured: this process trains on cpu\n"
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.proves("monitor.Monitor(gpu_utilization)")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_real_gpu(monitored):
    sent = monitored(only("gpu_utilization"))
    assert "gpu_utilization" in sent
    assert all(0 <= value <= 100 for _, name, value in LOGGED if name == "gpu_utilization_percent")
