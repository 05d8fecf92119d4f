"""Models of transformers: a module made from a name or path, and what belongs beside the weights of a saved one.

transformers is imported when a model of it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from accmt.config.errors import ConfigError, Problem, did_you_mean, must_be
from accmt.module import AcceleratorModule
from accmt.options import Options

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class PretrainedModule(AcceleratorModule):
    """A model of transformers that computes its own loss from batches with labels.

    A batch is a dictionary of the model's arguments, `labels` among them, or a pair (arguments, labels). In a
    validation each metric gets (logits, labels).

    Args:
        model: The model.
        metrics: The names of the metrics of the training.
    """

    def __init__(self, model: nn.Module, metrics: Sequence[str] = ()) -> None:
        self.model = model
        self._metrics = tuple(metrics)

    def training_step(self, batch: Any) -> Tensor:
        loss: Tensor = self._loss(self.model(**_arguments(batch)))
        return loss

    def validation_step(self, key: str, batch: Any) -> dict[str, Any]:
        arguments = _arguments(batch)
        outputs = self.model(**arguments)
        compared = dict.fromkeys(self._metrics, (outputs.logits, arguments["labels"])) if self._metrics else {}
        return {"loss": self._loss(outputs), **compared}

    def _loss(self, outputs: Any) -> Tensor:
        loss = getattr(outputs, "loss", None)
        if loss is None:
            raise ValueError(
                f"{type(self.model).__name__} computed no loss: its batches need 'labels', and the model a head that "
                f"uses them, such as AutoModelForSequenceClassification"
            )
        return loss  # type: ignore[no-any-return]


def resolve(module: Any, kwargs: Mapping[str, Any], options: Options) -> Any:
    """What `fit` is given as a module: as it is, or made from (name or path, class).

    Args:
        module: A module, a name or path, or a pair of it and a class of transformers, or the name of one.
        kwargs: Arguments of the class's `from_pretrained`.
        options: The options, for the names of the metrics.

    Raises:
        ConfigError: It cannot be made.
    """
    if isinstance(module, str | Path):
        return _made(str(module), None, kwargs, options)
    if isinstance(module, tuple):
        if len(module) != 2 or not isinstance(module[0], str | Path) or not isinstance(module[1], str | type):
            text = must_be('a name or path, or a pair such as ("path", "AutoModelForCausalLM")', module)
            raise ConfigError([Problem("module", text)], "fit(...)")
        return _made(str(module[0]), module[1], kwargs, options)
    if kwargs:
        allowed = ("module", "train_dataset", "val_dataset")
        hint = "Only for a model given by its name there are more: those of from_pretrained"
        problems = [Problem(name, f"unknown argument{did_you_mean(name, allowed)} {hint}") for name in kwargs]
        raise ConfigError(problems, "fit(...)")
    return module


def extras_of(model: nn.Module, options: Options) -> Callable[[Path], None]:
    """Writes what `from_pretrained` needs beside the weights: the configuration, and the tokenizer of the collator."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return lambda folder: None
    collators = (options.data.collate_train, options.data.collate_val)
    tokenizers = (getattr(collator, "tokenizer", None) for collator in collators)
    parts = [model.config, getattr(model, "generation_config", None), next(filter(None, tokenizers), None)]

    def write(folder: Path) -> None:
        model.config.architectures = [type(model).__name__]
        for part in parts:
            if hasattr(part, "save_pretrained"):
                part.save_pretrained(folder)

    return write


def _made(path: str, kind: str | type | None, kwargs: Mapping[str, Any], options: Options) -> AcceleratorModule:
    chosen = _class(path, kind, kwargs)
    try:
        model = chosen.from_pretrained(path, **kwargs)
    except (OSError, ValueError, TypeError) as error:
        text = f"{chosen.__name__}.from_pretrained('{path}') failed: {error}"
        raise ConfigError([Problem("module", text)], "fit(...)") from error
    names = dict.fromkeys(metric.main_metric for metrics in options.metrics.values() for metric in metrics)
    return PretrainedModule(model, list(names))


def _class(path: str, kind: str | type | None, kwargs: Mapping[str, Any]) -> Any:
    """The class to load with; without one that which the model was saved with."""
    try:
        import transformers
    except ImportError:
        text = f"'{path}' names a model of transformers, which is not installed: pip install transformers"
        raise ConfigError([Problem("module", text)], "fit(...)") from None
    if kind is None:
        try:
            config: PretrainedConfig = transformers.AutoConfig.from_pretrained(path, **_locating(kwargs))
        except (OSError, ValueError) as error:
            raise ConfigError([Problem("module", f"there is no model '{path}': {error}")], "fit(...)") from error
        kind = next(iter(config.architectures or []), None)
        if kind is None:
            text = f"'{path}' does not say its class: give it, (path, \"AutoModelForSequenceClassification\")"
            raise ConfigError([Problem("module", text)], "fit(...)")
    found = kind if isinstance(kind, type) else getattr(transformers, kind, None)
    if not hasattr(found, "from_pretrained"):
        near = did_you_mean(str(kind), [name for name in dir(transformers) if "For" in name or "Model" in name])
        text = f"'{kind}' is no model class of transformers{near} For example AutoModelForSequenceClassification"
        raise ConfigError([Problem("module", text)], "fit(...)")
    return found


def _locating(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that say where a model is, for reading its configuration."""
    names = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
    return {name: kwargs[name] for name in names if name in kwargs}


def _arguments(batch: Any) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping):
        return {**batch[0], "labels": batch[1]}
    kind = type(batch).__name__
    raise TypeError(
        f"a batch for a model of transformers is a dictionary, or a pair (dictionary, labels), not a {kind}"
    )
