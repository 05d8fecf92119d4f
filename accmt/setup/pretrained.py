"""Models of transformers: a module made from a name or path, and the files that belong next to saved weights.

transformers is imported only when one of its models is used.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeGuard

from huggingface_hub import constants
from torch import Tensor, nn

from accmt._compat import is_auto_class, model_of_config
from accmt.checkpoint.format import shortened_value
from accmt.config.errors import ConfigError, Problem, argument_meant, did_you_mean, must_be
from accmt.distributed.weight_names import unwrapped
from accmt.module import AcceleratorModule
from accmt.setup.options import Options

_ARGUMENTS = ("module", "train_dataset", "val_dataset", "loss_fn", "metrics")
_EXAMPLE = "AutoModelForSequenceClassification"
_LISTED = 4


class PretrainedModule(AcceleratorModule):
    """A transformers model that computes its own loss from batches with labels.

    A batch is a dictionary of the model's arguments, including `labels`, or a pair (arguments, labels). In validation
    each metric gets (logits, labels): the model's logits and the batch's labels, unchanged.

    Args:
        model: The model.
        metrics: The names of the training's metrics.
        notes: Remarks to show before the training, one line each.
    """

    def __init__(self, model: nn.Module, metrics: Sequence[str] = (), notes: Sequence[str] = ()) -> None:
        self.model = model
        self.notes = tuple(notes)
        self._metrics = tuple(metrics)
        self._class = type(model).__name__

    def training_step(self, batch: Any) -> Tensor:
        arguments = _arguments(batch)
        return self._loss(self.model(**arguments), arguments)

    def validation_step(self, key: str, batch: Any) -> dict[str, Any]:
        arguments = _arguments(batch)
        outputs = self.model(**arguments)
        loss = self._loss(outputs, arguments)
        compared = dict.fromkeys(self._metrics, self._compared(outputs, arguments)) if self._metrics else {}
        return {"loss": loss, **compared}

    def predict_step(self, batch: Any) -> Any:
        outputs = self.model(**_arguments(batch))
        logits = getattr(outputs, "logits", None)
        return outputs if logits is None else logits

    def _loss(self, outputs: Any, arguments: Mapping[str, Any]) -> Tensor:
        loss = getattr(outputs, "loss", None)
        if isinstance(loss, Tensor):
            return loss
        if isinstance(outputs, tuple):
            raise ValueError(
                f"{self._class} returned a tuple, in which the loss has no name: leave out return_dict=False"
            )
        reason = "has no head that uses them" if "labels" in arguments else "needs 'labels' in its batches"
        raise ValueError(f"{self._class} computed no loss: it {reason}; the batch has {_listed(arguments)}")

    def _compared(self, outputs: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return (logits, labels), the arguments of every metric."""
        logits = getattr(outputs, "logits", None)
        if logits is None or "labels" not in arguments:
            what = f"{self._class} returned no 'logits'" if logits is None else "the batch has no 'labels'"
            text = f"metrics get the logits of the model and the labels of the batch, and {what}"
            raise ValueError(f"{text}: leave the metrics out, or write an AcceleratorModule")
        return logits, arguments["labels"]


def resolve(module: Any, kwargs: Mapping[str, Any], options: Options) -> Any:
    """Return the module for `fit`: as it is, or of a model of transformers.

    Args:
        module: A module, a model, a name or path or a configuration, or a pair of one of these three and a transformers
            class or its name.
        kwargs: Arguments of the class's `from_pretrained`.
        options: The options, for the names of the metrics.

    Raises:
        ConfigError: If it cannot be loaded.
    """
    is_pair = isinstance(module, tuple) and len(module) == 2 and isinstance(module[1], str | type)
    given, kind = module if is_pair else (module, None)
    if isinstance(given, str | Path):
        return _made(given, kind, kwargs, options)
    transformers = sys.modules.get("transformers")
    is_config = transformers is not None and isinstance(given, transformers.PretrainedConfig)
    if isinstance(module, tuple) and not is_config:
        _refuse("module", must_be('a name or path, or a pair such as ("path", "AutoModelForCausalLM")', module))
    if kwargs:
        hint = "Only for a model given by its name there are more: those of from_pretrained"
        problems = [Problem(name, f"unknown argument{argument_meant(name, _ARGUMENTS)} {hint}") for name in kwargs]
        raise ConfigError(problems, "fit(...)")
    if is_config:
        given = _new(transformers, given, kind)
    elif is_pretrained(given):
        _check_loss(given, _EXAMPLE)
    return PretrainedModule(given, _metric_names(options)) if is_config or is_pretrained(given) else given


def is_pretrained(model: Any) -> TypeGuard[Any]:
    """Return whether an object is a model of transformers."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def _metric_names(options: Options) -> list[str]:
    return list(dict.fromkeys(metric.main_metric for metrics in options.metrics.values() for metric in metrics))


def _new(transformers: Any, config: Any, kind: str | type | None) -> Any:
    """Return a new model for a configuration."""
    pair, name = f'(config, "{_EXAMPLE}")', type(config).__name__
    if kind is None and not config.architectures:
        _refuse("module", f"{name} does not name the class of its model: give a class, {pair}")
    chosen = _class(transformers, name, kind, {"config": config})
    try:
        model = model_of_config(chosen, config) if _is_ours(transformers, chosen) else chosen(config)
    except Exception as error:
        text = f"{chosen.__name__} cannot be made of {name}: {type(error).__name__}: {str(error).splitlines()[0]}"
        _refuse("module", text, error)
    _check_loss(model, pair)
    return model


def notes_of(module: AcceleratorModule) -> tuple[str, ...]:
    """Return remarks about a module to show before it is trained, one line each."""
    return module.notes if isinstance(module, PretrainedModule) else ()


def extras_of(module: AcceleratorModule, model: nn.Module, options: Options) -> Callable[[Path], None]:
    """Return a function that writes into a folder what `from_pretrained` needs next to the weights of the model.

    That is its configuration and, if they exist, its generation settings, its custom code, and the tokenizer of the
    collator.

    Args:
        module: The module, which may have collators.
        model: Its unwrapped model.
        options: The options, which may have collators.
    """
    if not is_pretrained(model):
        return lambda folder: None
    given = (module.collate_fn_train, module.collate_fn_val, options.data.collate_train, options.data.collate_val)
    tokenizers = (getattr(collator, "tokenizer", None) for collator in given)
    tokenizer = next((one for one in tokenizers if hasattr(one, "save_pretrained")), None)

    def write(folder: Path) -> None:
        config = copy.deepcopy(model.config)
        # FSDP prefixes the class name of a model that it shards.
        config.architectures = [type(model).__name__.removeprefix("FSDP")]
        config.dtype = str(model.dtype).removeprefix("torch.")
        if model.is_remote_code():
            from transformers.dynamic_module_utils import custom_object_save

            custom_object_save(model, folder, config)
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    return write


def check_extras(module: AcceleratorModule, options: Options) -> None:
    """Check before the training that the files next to the weights can be written.

    Raises:
        ConfigError: If they cannot. transformers rejects, for example, generation settings that have no effect.
    """
    with TemporaryDirectory() as folder:
        try:
            extras_of(module, unwrapped(module.model), options)(Path(folder))
        except (ValueError, TypeError) as error:
            what = f"{type(module.model).__name__} could be trained, but not saved with its configuration and tokenizer"
            _refuse("module", f"{what}: {error}", error)


def _made(place: str | Path, kind: str | type | None, kwargs: Mapping[str, Any], options: Options) -> AcceleratorModule:
    path = os.path.expanduser(place)
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        text = f"'{path}' names a model of transformers, which is not installed: pip install transformers"
        _refuse("module", text)
    _check_place(path, kwargs)
    chosen = _class(transformers, path, kind, kwargs)
    model, notes = _loaded(transformers, chosen, path, kwargs)
    return PretrainedModule(model, _metric_names(options), notes)


def _check_place(path: str, kwargs: Mapping[str, Any]) -> None:
    """Check a path as far as possible without loading from it."""
    folder = Path(path, kwargs.get("subfolder") or "")
    if not path.strip():
        _refuse("module", must_be("a name or path", path))
    if folder.is_file():
        _refuse("module", f"'{folder}' is a file: give the folder that save_pretrained wrote")
    if folder.is_dir():
        configured = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
        if not configured and not kwargs.keys() & {"config", "gguf_file"}:
            inside = sorted(str(found.parent) for found in folder.glob("*/config.json"))
            hint = f"; there is one in {_quoted(inside)}" if inside else ": give a folder that save_pretrained wrote"
            _refuse("module", f"there is no config.json in the folder '{folder}'{hint}")
    elif Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1:
        # Model names on the hub have at most one slash.
        _refuse("module", f"there is no folder '{path}'{_sibling(path)}")


def _class(transformers: Any, path: str, kind: str | type | None, kwargs: Mapping[str, Any]) -> Any:
    """Return the class to load with; by default the one that the model was saved as."""
    if isinstance(kind, type):
        if not hasattr(kind, "from_pretrained"):
            _refuse("module", f"{kind.__name__} is not a model class: it has no from_pretrained")
        return kind
    if kind is None:
        config = _config(transformers, path, kwargs)
        kind = next(iter(config.architectures or ()), None)
        give = f'give a class, ("{path}", "{_EXAMPLE}")'
        if kind is None:
            _refuse("module", f"the configuration of '{path}' does not name the class of its model: {give}")
        own = {entry.rpartition(".")[2]: name for name, entry in (getattr(config, "auto_map", None) or {}).items()}
        found = getattr(transformers, own.get(kind, kind), None)
        if not _is_ours(transformers, found):
            _refuse("module", f"'{path}' was saved as {kind}, which is not a model class of transformers: {give}")
        return found
    found = getattr(transformers, kind, None)
    if not _is_ours(transformers, found):
        near = did_you_mean(kind, [name for name in dir(transformers) if "For" in name or "Model" in name])
        _refuse("module", f"'{kind}' is not a model class of transformers{near} For example {_EXAMPLE}")
    return found


def _config(transformers: Any, path: str, kwargs: Mapping[str, Any]) -> Any:
    given = kwargs.get("config")
    if isinstance(given, transformers.PretrainedConfig):
        return given
    # The arguments that say where a model is.
    names = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
    try:
        return transformers.AutoConfig.from_pretrained(
            given or path, **{name: kwargs[name] for name in names if name in kwargs}
        )
    except Exception as error:
        _refuse_loading("AutoConfig", path, kwargs, error)


def _is_ours(transformers: Any, found: Any) -> bool:
    """Return whether an object is a model class of transformers."""
    return isinstance(found, type) and (issubclass(found, transformers.PreTrainedModel) or is_auto_class(found))


def _loaded(transformers: Any, chosen: Any, path: str, kwargs: Mapping[str, Any]) -> tuple[nn.Module, list[str]]:
    """Load the model; return it and remarks about it."""
    ours = _is_ours(transformers, chosen)
    more = {"output_loading_info": True, "ignore_mismatched_sizes": True} if ours else {}
    try:
        with _quietly(transformers):
            loaded = chosen.from_pretrained(path, **{**kwargs, **more})
    except Exception as error:
        _refuse_loading(chosen.__name__, path, kwargs, error)
    model, info = loaded if ours else (loaded, {})
    if not isinstance(model, nn.Module):
        _refuse("module", f"{chosen.__name__}.from_pretrained returned a {type(model).__name__} instead of a model")
    if ours:
        _check_loss(model, f'("{path}", "{_EXAMPLE}")')
    return model, _new_weights(model, path, info, kwargs)


def _check_loss(model: nn.Module, example: str) -> None:
    """Reject a model without a head.

    Only transformers' own classes, judged by class name and arguments: they share no other sign of a missing head.
    """
    kind = type(model)
    of_transformers, known = kind.__module__.startswith("transformers.models."), signature(model.forward).parameters
    if of_transformers and kind.__name__.endswith("Model") and not {"labels", "return_loss"} & known.keys():
        text = f"computes no loss, because it has no head: give a class that has one, {example}"
        _refuse("module", f"{kind.__name__} {text}")


def _new_weights(model: nn.Module, path: str, info: Mapping[str, Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Report weights that do not come from the path, one line for each reason.

    Raises:
        ConfigError: If none comes from it, or if one has another shape without `ignore_mismatched_sizes`.
    """
    kind, names = type(model).__name__, model.state_dict().keys()
    missing = set(info.get("missing_keys", ()))
    other = {name: (tuple(theirs), tuple(mine)) for name, theirs, mine in info.get("mismatched_keys", ())}
    if other and not kwargs.get("ignore_mismatched_sizes"):
        lines = [f"{name} has the shape {theirs} there and {mine} here" for name, (theirs, mine) in other.items()]
        text = f"does not match {kind}; with ignore_mismatched_sizes=True such weights are newly initialized"
        _refuse("module", "\n    ".join([f"'{path}' {text}:", *shortened_value(sorted(lines))]))
    if names and not names - missing:
        _refuse("module", f"'{path}' contains none of the weights of {kind}: give the class that it was saved as")
    reasons = {"are not in": missing, "have another shape in": other}
    return [
        f"{len(new)} of {len(names)} weights of {kind} {reason} '{path}' and are newly initialized: "
        f"{_listed(sorted(new))}"
        for reason, new in reasons.items()
        if new
    ]


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Hide the progress bar and the report of a loading model; `_new_weights` reports what matters.

    Download bars and other warnings stay.
    """
    logger, library = logging.getLogger("transformers.modeling_utils"), transformers.utils.logging

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    hook = getattr(library, "set_tqdm_hook", lambda hook: None)
    former = hook(lambda factory, args, kwargs: library.EmptyTqdm(*args, **kwargs))
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
        hook(former)


def _refuse(name: str, text: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigError([Problem(name, text)], "fit(...)") from cause


def _refuse_loading(kind: str, path: str, kwargs: Mapping[str, Any], error: Exception) -> NoReturn:
    """Raise an error that says why a model could not be loaded."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error)) if isinstance(error, TypeError) else None
    if unknown is not None and unknown[1] in kwargs:
        near = argument_meant(unknown[1], (*_ARGUMENTS[1:], "num_labels", "dtype", "config", "attn_implementation"))
        _refuse(unknown[1], f"neither fit nor {kind}.from_pretrained has this argument{near}", error)
    if isinstance(error, OSError) and not Path(path).exists():
        absent = f"there is no folder '{path}'{_sibling(path)}"
        if constants.HF_HUB_OFFLINE or kwargs.get("local_files_only"):
            text = "Offline, only models in the cache of Hugging Face can be loaded, and it is not there"
            _refuse("module", f"{absent} {text}: check it, or load it once online", error)
        text = "Hugging Face has no model of this name that could be loaded either"
        _refuse("module", f"{absent} {text}: {str(error).splitlines()[0]}", error)
    _refuse("module", f"{kind}.from_pretrained('{path}') failed: {type(error).__name__}: {error}", error)


def _sibling(path: str) -> str:
    """Return a suggestion of the nearest folder next to a path that does not exist, to end a sentence."""
    parent = Path(path).parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    return did_you_mean(Path(path).name, names)


def _arguments(batch: Any) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping):
        return {**batch[0], "labels": batch[1]}
    kind = type(batch).__name__
    raise TypeError(
        f"a batch for a model of transformers is a dictionary, or a pair (dictionary, labels), not a {kind}"
    )


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    names = list(names)
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "nothing") + more


def _quoted(names: Sequence[str]) -> str:
    return _listed([f"'{name}'" for name in names])
