"""Validation of the arguments of `fit` and `evaluate`: reports every problem at once, before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from accmt.config.errors import Problem, did_you_mean, must_be, raise_problems
from accmt.metrics.metric import Metric, MetricParallel
from accmt.metrics.torchmetrics import TorchMetric
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule
from accmt.rules import Facts, Length, Reported
from accmt.rules.store import VALID_LOSS, dataset_name
from accmt.setup.method_check import method_problems, overrides
from accmt.setup.options import Options

NO_MODEL = "has no model: set self.model to a torch.nn.Module in its constructor"


def check_fit(options: Options, module: Any, train_dataset: Any, val_dataset: Any) -> dict[str, Dataset[Any]]:
    """Check the arguments of `fit` and name the validation datasets.

    Raises:
        ConfigError: With all problems.
    """
    problems = _kind_problems(module) or _module_problems(options, module, train_dataset, val_dataset)
    if isinstance(module, AcceleratorModule):
        problems += method_problems(module, options.callbacks)
    datasets = _named(val_dataset, problems)
    if train_dataset is not None:
        problems += _dataset_problems("train_dataset", train_dataset)
    for key, dataset in datasets.items():
        problems += _dataset_problems("val_dataset" if dataset is val_dataset else f"val_dataset['{key}']", dataset)
    problems += _held_out_problems(options.held_out, val_dataset, datasets)
    problems += _metric_problems(options.metrics, datasets)
    problems += _training_metric_problems(options, datasets)
    raise_problems(problems, "fit(...)")
    return datasets


def check_evaluation(options: Options, module: Any, datasets: Any) -> dict[str, Dataset[Any]]:
    """Check the arguments of `evaluate` and name the datasets.

    Raises:
        ConfigError: With all problems.
    """
    problems = _kind_problems(module)
    raise_problems(problems, "evaluate(...)")
    if not isinstance(getattr(module, "model", None), nn.Module):
        problems.append(Problem(type(module).__name__, NO_MODEL))
    elif not overrides(module, AcceleratorModule, "validation_step"):
        problems.append(Problem(type(module).__name__, "has no validation_step(self, key, batch)"))
    problems += method_problems(module, options.callbacks)
    named = _named(datasets, problems, "datasets")
    if not named and not problems:
        problems.append(Problem("datasets", "is empty: there is nothing to evaluate"))
    for key, dataset in named.items():
        problems += _dataset_problems("datasets" if dataset is datasets else f"datasets['{key}']", dataset)
    metrics = {key: listed for key, listed in options.metrics.items() if key is None or key in named}
    problems += _metric_problems(metrics, named)
    raise_problems(problems, "evaluate(...)")
    return named


def check_prediction(module: Any, dataset: Any) -> None:
    """Check the arguments of `predict`.

    Raises:
        ConfigError: With all problems.
    """
    raise_problems(_kind_problems(module), "predict(...)")
    problems = (
        [] if isinstance(getattr(module, "model", None), nn.Module) else [Problem(type(module).__name__, NO_MODEL)]
    )
    problems += method_problems(module, (), predicts=True) + _dataset_problems("dataset", dataset)
    raise_problems(problems, "predict(...)")


def _kind_problems(module: Any) -> list[Problem]:
    if isinstance(module, type) and issubclass(module, AcceleratorModule | nn.Module):
        text = f"is the class {module.__name__}: give an instance, {module.__name__}()"
        return [Problem("module", text)]
    if not isinstance(module, AcceleratorModule):
        also = "fit also takes a torch.nn.Module with loss_fn, and models of transformers"
        return [Problem("module", f"must be an AcceleratorModule ({also}), not {type(module).__name__}")]
    return []


def _module_problems(
    options: Options, module: AcceleratorModule, train_dataset: Any, val_dataset: Any
) -> list[Problem]:
    kind, problems = type(module), _model_problems(options, module)
    if not overrides(module, AcceleratorModule, "training_step"):
        problems.append(Problem(kind.__name__, "has no training_step(self, batch)"))
    if val_dataset is not None and not overrides(module, AcceleratorModule, "validation_step"):
        problems.append(Problem(kind.__name__, "has no validation_step(self, key, batch), and val_dataset is given"))
    problems += _collate_problems(options, module)
    if train_dataset is None and not overrides(module, AcceleratorModule, "get_train_dataloader"):
        problems.append(Problem("train_dataset", "is missing, and the module has no get_train_dataloader"))
    return problems


def _collate_problems(options: Options, module: AcceleratorModule) -> list[Problem]:
    """Return collate functions of the trainer that the module's own make useless."""
    given = {"collate_fn_train": options.data.collate_train, "collate_fn_val": options.data.collate_val}
    idle = [
        name for name, function in given.items() if function is not None and getattr(module, name, None) is not None
    ]
    if options.data.collate_train is options.data.collate_val:
        idle = ["collate_fn"] if len(idle) == len(given) else []
    text = f"is given to the trainer, and {type(module).__name__} has its own: leave one of them out"
    return [Problem(name, text) for name in idle]


def _model_problems(options: Options, module: AcceleratorModule) -> list[Problem]:
    model, problems = getattr(module, "model", None), []
    if not isinstance(model, nn.Module):
        return [Problem(type(module).__name__, NO_MODEL)]
    if module.teacher is not None and not isinstance(module.teacher, nn.Module):
        problems.append(
            Problem(f"{type(module).__name__}.teacher", must_be("a torch.nn.Module, or None", module.teacher))
        )
    names = ("gradient_checkpointing_enable", "activation_checkpointing_enable")
    if options.model.gradient_checkpointing and not any(hasattr(model, name) for name in names):
        text = f"needs a method gradient_checkpointing_enable, and {type(model).__name__} has none"
        problems.append(Problem("gradient_checkpointing", text))
    if options.accumulation != 1 and isinstance(module, ExtendedAcceleratorModule):
        text = (
            "an ExtendedAcceleratorModule accumulates gradients itself: leave it out, and step where self.state says so"
        )
        problems.append(Problem("grad_accumulation_steps", text))
    return problems


def _named(val_dataset: Any, problems: list[Problem], name: str = "val_dataset") -> dict[str, Dataset[Any]]:
    """Return key -> dataset; keys are strings; a list gets "0", "1", ..., a single dataset "0"."""
    if val_dataset is None:
        return {}
    if isinstance(val_dataset, Mapping):
        named: dict[str, Dataset[Any]] = {}
        for key, dataset in val_dataset.items():
            if str(key) in named:
                problems.append(Problem(name, f"has two keys that read '{key}'"))
            named[str(key)] = dataset
        return named
    listed = val_dataset if isinstance(val_dataset, list | tuple) else [val_dataset]
    if listed is val_dataset and (not listed or not all(map(_is_a_dataset, listed))):
        problems.append(Problem(name, _no_datasets(listed)))
        return {}
    return {str(index): dataset for index, dataset in enumerate(listed)}


def _is_a_dataset(item: Any) -> bool:
    """Return whether an item of a list is a dataset, or something rejected as one, rather than a sample."""
    if isinstance(item, Dataset | DataLoader | str):
        return True
    is_sample = isinstance(item, Tensor | list | tuple | Mapping) or hasattr(item, "__array__")
    return not is_sample and hasattr(item, "__getitem__") and hasattr(item, "__len__")


def _no_datasets(listed: Sequence[Any]) -> str:
    if not listed:
        return "is an empty list: give a dataset, or None"
    kind = type(next(item for item in listed if not _is_a_dataset(item))).__name__
    return (
        f"is a list, which means several datasets, but it contains a {kind}, which is not one. "
        f"If these are the samples of one dataset, give it a key: {{'dev': [...]}}"
    )


def _dataset_problems(name: str, dataset: Any) -> list[Problem]:
    if isinstance(dataset, DataLoader):
        hook = "get_train_dataloader" if name.startswith("train") else "get_validation_dataloader"
        return [Problem(name, f"is a DataLoader: give its dataset, or return the loader from the module's {hook}")]
    if isinstance(dataset, type):
        return [Problem(name, f"is the class {dataset.__name__}: give an instance")]
    if isinstance(dataset, IterableDataset):
        return []
    if isinstance(dataset, tuple) and any(isinstance(item, Tensor) or hasattr(item, "__array__") for item in dataset):
        return [
            Problem(
                name, "is a tuple of arrays, whose samples are spread over all of them: give TensorDataset(*tensors)"
            )
        ]
    if hasattr(dataset, "iloc"):
        return [
            Problem(name, f"is a {type(dataset).__name__}, whose items are its columns: give a dataset of its rows")
        ]
    if isinstance(dataset, str | Mapping) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        wanted = "a dataset with __getitem__ and __len__, or a torch IterableDataset"
        return [Problem(name, must_be(wanted, dataset))]
    return [Problem(name, "is empty")] if len(dataset) == 0 else []


def _held_out_problems(held_out: Sequence[str], val_dataset: Any, datasets: Mapping[str, Any]) -> list[Problem]:
    named = datasets if isinstance(val_dataset, list | tuple | Mapping) else {}
    if held_out and val_dataset is not None and not named:
        text = "names a dataset, and val_dataset is a single one: give a dictionary, such as {'dev': ..., 'test': ...}"
        return [Problem("held_out", text)]
    known = f"The datasets are: {', '.join(named)}" if named else "There are no validation data"
    problems = [
        Problem("held_out", f"'{key}' is not a dataset{did_you_mean(key, named)} {known}")
        for key in held_out
        if key not in named
    ]
    if named and held_out and not problems and set(named) <= set(held_out):
        problems.append(
            Problem("held_out", "holds out all datasets: the training needs one that is not, to evaluate on")
        )
    return problems


def _metric_problems(
    metrics: Mapping[str | None, Sequence[Metric]], datasets: Mapping[str, Dataset[Any]]
) -> list[Problem]:
    problems = []
    for key in metrics:
        if key is not None and datasets and key not in datasets:
            known = ", ".join(datasets)
            problems.append(
                Problem("metrics", f"'{key}' is not a dataset{did_you_mean(key, datasets)} The datasets are: {known}")
            )
    directions: dict[str, bool] = {}
    problems += _shared_states(metrics)
    for key in datasets:
        seen: set[str] = set()
        for metric in metrics_on(metrics, key):
            if type(metric).compute is Metric.compute:
                problems.append(
                    Problem("metrics", f"{type(metric).__name__} '{metric.name}' has no compute(self, ...)")
                )
            for name, greater in metric.directions.items():
                if name in seen or name in (VALID_LOSS, "train_loss", "loss"):
                    what = "is given twice" if name in seen else "has a name that is reserved for the losses"
                    problems.append(Problem("metrics", f"'{name}' {what} (dataset '{dataset_name(key, datasets)}')"))
                if directions.setdefault(name, greater) != greater:
                    text = f"'{name}' is better in different directions on different datasets"
                    problems.append(Problem("metrics", text))
                seen.add(name)
    return problems


def _training_metric_problems(options: Options, datasets: Mapping[str, Dataset[Any]]) -> list[Problem]:
    """Report training metrics whose names validation metrics also use."""
    measured = {name for key in datasets for metric in metrics_on(options.metrics, key) for name in metric.directions}
    text = "is also computed by a metric on validation data: log it under another name"
    return [Problem(f"training_metrics['{name}']", text) for name in options.training_metrics if name in measured]


def _shared_states(metrics: Mapping[str | None, Sequence[Metric]]) -> list[Problem]:
    """Report torchmetrics objects that several metrics share: each would see the samples of all."""
    owners: dict[int, Metric] = {}
    problems = []
    for metric in dict.fromkeys(metric for listed in metrics.values() for metric in listed):
        if not isinstance(metric, TorchMetric):
            continue
        for part in metric.metric.modules():
            owner = owners.setdefault(id(part), metric)
            if owner is not metric:
                text = f"'{owner.name}' and '{metric.name}' share one {type(part).__name__} object, and its state"
                problems.append(Problem("metrics", f"{text}: give each its own"))
    return problems


def facts_of(
    metrics: Mapping[str | None, Sequence[Metric]],
    datasets: tuple[str, ...],
    length: Length,
    training: Mapping[str, bool] | None = None,
    held_out: tuple[str, ...] = (),
    replicates: int | None = None,
) -> Facts:
    """Return the facts of a training against which its rules are checked; `datasets` are all, also held-out ones."""
    reported: dict[str, Reported] = {}
    evaluated = tuple(key for key in datasets if key not in held_out)
    for key in datasets:
        for metric in metrics_on(metrics, key):
            for name, greater in metric.directions.items():
                before = reported.get(name, Reported((), greater))
                why = before.no_replicates or _no_replicates(metric)
                on = (*before.datasets, key) if key in evaluated else before.datasets
                reported[name] = Reported(on, greater, why)
    if evaluated:
        reported[VALID_LOSS] = Reported(evaluated, greater_is_better=False)
    apart = tuple(key for key in datasets if key in held_out)
    return Facts(reported, evaluated, length, training or {}, apart, replicates)


def _no_replicates(metric: Metric) -> str:
    """Return why a metric has no replicates; empty if it has."""
    if metric.per_sample or not isinstance(metric, MetricParallel):
        return ""
    return f"{type(metric).__name__} computes it on each process apart, which a Metric does not"


def metrics_on(metrics: Mapping[str | None, Sequence[Metric]], key: str) -> list[Metric]:
    """Return the metrics of a dataset: those for all datasets, then its own."""
    return [*metrics.get(None, ()), *metrics.get(key, ())]
