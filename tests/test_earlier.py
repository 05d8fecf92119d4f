"""Names of earlier versions answer with what to write now."""

import subprocess
import sys

import pytest

import accmt
from accmt import AcceleratorModule, ConfigError, FunctionMetric, Metric, MetricParallel, TorchMetric, Trainer

NAMES = {
    "accelerator": "a module has its Accelerator as self.accelerator while it is trained; elsewhere use accelerate.PartialState",
    "MLFlow": 'give the trainer log_with="mlflow"',
    "tracker": 'give the trainer log_with="mlflow"; in a module self.tracker is its tracker',
    "utility": "use accelerate.PartialState for ranks and processes, and accmt.decorators to run on one of them",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_import(name):
    said = f"accmt no longer has '{name}': {NAMES[name]}"
    statements = [f"from accmt import {name}"]
    if name != "MLFlow":
        statements += [f"import accmt.{name}", f"from accmt.{name} import anything"]
    for statement in statements:
        with pytest.raises(ImportError) as caught:
            exec(statement, {})
        assert str(caught.value) == said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"model_saving": "best_valid_loss"}, 'model_saving: is no longer an argument: declare when to save with trainer.register_model_saving("best_valid_loss")'),
        ({"model_saving_below": 0.1}, 'model_saving_below: is no longer an argument: declare when to save with trainer.register_model_saving("best_valid_loss", saving_below=...)'),
        ({"checkpoint": "x"}, "checkpoint: is no longer an argument: leave it out: checkpoints are always below model_path"),
        ({"track_with": "mlflow"}, 'track_with: is no longer an argument: give log_with, such as log_with="mlflow"'),
        ({"inference_mode": True}, "inference_mode: is no longer an argument: leave it out: evaluations compute no gradients"),
        ({"callbacks": []}, "callbacks: is no longer an argument: give callback, one or a list"),
        ({"handlers": "all"}, "handlers: is no longer an argument: give callback: on_keyboard_interrupt, on_cuda_out_of_memory and on_exception of a Callback"),
        ({"report_loss_after_eval": True}, "report_loss_after_eval: is no longer an argument: leave it out: log_every says when the training loss is logged"),
        ({"callbacks": [], "log_with": "mlflow"}, "callbacks: is no longer an argument: give callback, one or a list"),
        ({"epochs": 3}, "epochs: unknown argument, did you mean 'epochs', a hyperparameter?"),
        ({"patience": -1}, "patience: must be a whole number from 1, not -1 (int); for no patience leave it out"),
    ],
)  # fmt: skip
def test_an_argument_of_the_trainer(arguments, problem):
    with pytest.raises(ConfigError) as caught:
        Trainer({"epochs": 1}, "nowhere", **arguments)
    assert str(caught.value) == f"1 mistake in Trainer(...):\n  {problem}"


class MLFlow:
    """What earlier versions had as a tracker."""


@pytest.mark.parametrize("given", [MLFlow, MLFlow()])
def test_the_tracker_as_a_class(given):
    with pytest.raises(ConfigError) as caught:
        Trainer({"epochs": 1}, "nowhere", log_with=given, track_with=given)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  log_with: must be the name of a tracker")
    assert lines[1].endswith(": give log_with='mlflow'")
    assert lines[2].startswith("  track_with: is no longer an argument")


def test_the_comparator_of_a_metric():
    class Own(Metric):
        def __init__(self):
            super().__init__("own", comparator="<")

    for kind, more in ((Metric, ()), (MetricParallel, ()), (FunctionMetric, (abs,)), (TorchMetric, (None,))):
        with pytest.raises(TypeError) as caught:
            kind("name", *more, comparator=">")
        assert str(caught.value) == (
            f"""{kind.__name__} no longer has 'comparator': give greater_is_better=True for ">", False for "<\""""
        )
    with pytest.raises(TypeError, match="Own no longer has 'comparator'"):
        Own()
    with pytest.raises(TypeError, match="unexpected keyword argument 'comparater'"):
        Metric("name", comparater=">")


def test_a_module_of_a_model_of_transformers():
    said = (
        "AcceleratorModule.from_hf no longer exists: "
        'give its name to fit: trainer.fit(("name", "AutoModelForSequenceClassification"), ...)'
    )
    with pytest.raises(AttributeError) as caught:
        AcceleratorModule.from_hf("name")
    assert str(caught.value) == said
    assert not hasattr(AcceleratorModule(), "from_hf")


def test_collators_and_decorators_can_be_imported_from_the_package():
    from accmt import DataCollatorForSeq2Seq, collate_fns, decorators, on_main_process

    assert DataCollatorForSeq2Seq is collate_fns.DataCollatorForSeq2Seq
    assert on_main_process is decorators.on_main_process
    for module in (collate_fns, decorators):
        assert all(getattr(accmt, name) is getattr(module, name) for name in module.__all__)


def test_the_answers_cost_nothing():
    code = "import sys, accmt.earlier; print([name for name in ('torch', 'accelerate') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
