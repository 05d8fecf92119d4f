"""Optimizers by name, and how to build one for the parameters of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import Parameter

from accmt._compat import put_off_dynamo, step_without_dynamo
from accmt.config.errors import ConfigError, Problem, must_be, raise_problems
from accmt.hyperparameters.arguments import Given, SignatureArguments, argument_problems, signature_arguments
from accmt.hyperparameters.catalogue import Catalogue

OptimizerChoice = str | type[torch.optim.Optimizer] | Callable[..., torch.optim.Optimizer]
"""A name, a class, or a factory `(params, **arguments) -> torch.optim.Optimizer`."""

_IMPLEMENTATIONS = ("fused", "foreach")

_NO_TRANSFORMERS = (
    "Adafactor is the one of transformers, which is not installed. Install it (pip install transformers), "
    "or use torch.optim.Adafactor, which has other arguments"
)


def adafactor(  # noqa: PLR0913  the signature is that of transformers' class
    params: Iterable[Any],
    lr: float | None = None,
    eps: tuple[float, float] = (1e-30, 0.001),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> torch.optim.Optimizer:
    """Build transformers' Adafactor; transformers is imported only here (https://arxiv.org/abs/1804.04235).

    By default it computes its own learning rates; to give `lr`, or to use a scheduler, set `relative_step=False`.

    Raises:
        ImportError: If transformers is not installed.
    """
    try:
        from transformers.optimization import Adafactor
    except ImportError as error:
        raise ImportError(_NO_TRANSFORMERS) from error
    optimizer: torch.optim.Optimizer = Adafactor(
        params,
        lr=lr,
        eps=eps,
        clip_threshold=clip_threshold,
        decay_rate=decay_rate,
        beta1=beta1,
        weight_decay=weight_decay,
        scale_parameter=scale_parameter,
        relative_step=relative_step,
        warmup_init=warmup_init,
    )
    return optimizer


class Optimizer:
    """Optimizers with a name: `HyperParameters(optimizer=Optimizer.AdamW)` is the same as `optimizer="AdamW"`.

    Each attribute is torch's own class (Adafactor: a function with the arguments of transformers' class), so an editor
    shows its arguments, which go into `optim_kwargs`. LBFGS evaluates the batches of a step several times;
    `grad_accumulation_steps` is their number. SparseAdam is for sparse gradients (`nn.Embedding(sparse=True)`), which
    cannot be clipped: give the trainer `clip_grad=None`.
    """

    ASGD = torch.optim.ASGD
    Adadelta = torch.optim.Adadelta
    Adafactor = staticmethod(adafactor)
    Adagrad = torch.optim.Adagrad
    Adam = torch.optim.Adam
    AdamW = torch.optim.AdamW
    Adamax = torch.optim.Adamax
    LBFGS = torch.optim.LBFGS
    NAdam = torch.optim.NAdam
    RAdam = torch.optim.RAdam
    RMSprop = torch.optim.RMSprop
    Rprop = torch.optim.Rprop
    SGD = torch.optim.SGD
    SparseAdam = torch.optim.SparseAdam

    def __init__(self) -> None:
        raise TypeError("Optimizer is a list of names; use one of its attributes, such as Optimizer.AdamW")


OPTIMIZERS = Catalogue.of("optimizer", torch.optim.Optimizer, "torch.optim.Optimizer", "params", Optimizer)


def optimizer_problems(choice: OptimizerChoice, kwargs: Mapping[str, Any]) -> list[Problem]:
    """Check the arguments for the chosen optimizer."""
    arguments = signature_arguments(OPTIMIZERS.resolve(choice))
    given = Given(OPTIMIZERS.title_of(choice), "optim_kwargs", kwargs)
    decays = arguments.takes("weight_decay")
    problems = argument_problems(given, arguments, extras=("no_decay",) if decays else ())
    if _groups_by_decay(arguments, kwargs):
        # Report it once: that the optimizer has no weight decay, not also that the argument is unknown.
        problems = [problem for problem in problems if problem.path != "optim_kwargs.no_decay"]
        problems += _no_decay_problems(given, decays or arguments.open)
    if getattr(OPTIMIZERS.resolve(choice), "__module__", "").startswith("torch.optim."):
        problems += _implementation_problems(given, arguments)
    if OPTIMIZERS.resolve(choice) is adafactor and find_spec("transformers") is None:
        problems.append(Problem("optimizer", _NO_TRANSFORMERS))
    return problems


def build_optimizer(
    choice: OptimizerChoice, kwargs: Mapping[str, Any], named_parameters: Iterable[tuple[str, Parameter]]
) -> torch.optim.Optimizer:
    """Build the optimizer over the parameters that require a gradient.

    See `HyperParameters.build_optimizer` for the parameter groups.
    """
    problems = optimizer_problems(choice, kwargs)
    raise_problems(problems, "HyperParameters")
    named = _without_repetition(named_parameters)
    if not any(parameter.requires_grad for parameter in named.values()):
        text = f"none of its {len(named)} parameters requires a gradient, so there is nothing to train"
        raise ConfigError([Problem("model", f"{text}. Set requires_grad=True on those to train")])
    kwargs = dict(kwargs)
    params: list[Any] = [parameter for parameter in named.values() if parameter.requires_grad]
    if _groups_by_decay(signature_arguments(OPTIMIZERS.resolve(choice)), kwargs):
        params = _decay_groups(named, _words(kwargs.pop("no_decay")))
    put_off_dynamo()
    optimizer: torch.optim.Optimizer = OPTIMIZERS.build(choice, "optim_kwargs", params, **kwargs)
    step_without_dynamo(optimizer)
    return optimizer


def extend_optimizer(
    optimizer: torch.optim.Optimizer,
    choice: OptimizerChoice,
    kwargs: Mapping[str, Any],
    named_parameters: Iterable[tuple[str, Parameter]],
    added: Iterable[Parameter],
) -> None:
    """Add parameters to an optimizer, each to the group in which it would have been from the start.

    Raises:
        ConfigError: If the optimizer cannot accept more parameters.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        text = "LBFGS cannot accept parameters that are unfrozen after its first step: unfreeze them before fit"
        raise ConfigError([Problem("optimizer", text)], "the training")
    kwargs = dict(kwargs)
    words: list[str] = []
    if _groups_by_decay(signature_arguments(OPTIMIZERS.resolve(choice)), kwargs):
        words = _words(kwargs.pop("no_decay"))
    decays = {
        id(parameter): not any(_matches(word, name) for word in words)
        for name, parameter in reversed(_without_repetition(named_parameters).items())
    }
    for is_decayed in (True, False):
        members = [parameter for parameter in added if decays[id(parameter)] is is_decayed]
        if members:
            own = {} if is_decayed else {"weight_decay": 0.0}
            # Built by the same factory, because some optimizers create their state at construction.
            fresh = OPTIMIZERS.build(choice, "optim_kwargs", [{"params": members, **own}], **kwargs)
            _join(optimizer, fresh, decays, is_decayed)


def _join(optimizer: torch.optim.Optimizer, fresh: torch.optim.Optimizer, decays: Any, is_decayed: bool) -> None:
    """Move the parameters of another optimizer into the matching group; create that group if there is none."""
    optimizer.state.update(fresh.state)
    [new] = fresh.param_groups
    for group in optimizer.param_groups:
        if any(decays.get(id(parameter)) is is_decayed for parameter in group["params"]):
            group["params"].extend(new["params"])
            return
    rates = {name: value for name, value in optimizer.param_groups[0].items() if name in ("lr", "initial_lr")}
    optimizer.add_param_group({**new, **rates})


def _groups_by_decay(arguments: SignatureArguments, kwargs: Mapping[str, Any]) -> bool:
    """Return whether accmt handles `no_decay`; a factory with an argument of this name gets it instead."""
    return "no_decay" in kwargs and not arguments.takes("no_decay")


def _no_decay_problems(given: Given, decays: bool) -> list[Problem]:
    if not decays:
        text = f"{given.name} has no weight_decay, remove it or use another optimizer"
        return [given.problem("no_decay", text)]
    value = given.values["no_decay"]
    words = [value] if isinstance(value, str) else value
    if isinstance(words, list | tuple) and all(isinstance(word, str) and all(word.split(".")) for word in words):
        return []
    return [given.problem("no_decay", must_be('a list of parts of parameter names, such as ["bias", "norm"]', value))]


def _implementation_problems(given: Given, arguments: SignatureArguments) -> list[Problem]:
    """Report what torch takes for True, such as "no", and two implementations at once."""
    values = {name: given.values[name] for name in _IMPLEMENTATIONS if name in given.values and arguments.takes(name)}
    wrong = {name: value for name, value in values.items() if not (value is None or isinstance(value, bool))}
    if not wrong and len(values) > 1 and all(values.values()):
        return [given.problem("fused", "cannot be True together with foreach, give one of them")]
    return [given.problem(name, must_be("True, False or None", value)) for name, value in wrong.items()]


def _words(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _without_repetition(named_parameters: Iterable[tuple[str, Parameter]]) -> dict[str, Parameter]:
    """Return each parameter once, under its first name, even if the model uses it under several."""
    seen: set[int] = set()
    named = {}
    for name, parameter in named_parameters:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            named[name] = parameter
    return named


def _decay_groups(named: Mapping[str, Parameter], words: list[str]) -> list[dict[str, Any]]:
    """Split the trainable parameters into two groups, the second with weight_decay 0; leave out an empty group."""
    unmatched = [word for word in words if not any(_matches(word, name) for name in named)]
    if unmatched:
        text = "matches the name of no parameter, remove it or correct it"
        raise ConfigError([Problem("optim_kwargs.no_decay", f"'{word}' {text}") for word in unmatched])
    decayed: list[Parameter] = []
    undecayed: list[Parameter] = []
    for name, parameter in named.items():
        if parameter.requires_grad:
            (undecayed if any(_matches(word, name) for word in words) else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _matches(word: str, name: str) -> bool:
    """Return whether consecutive components of the dotted name contain those of the word, ignoring case."""
    wanted, components = word.casefold().split("."), name.casefold().split(".")
    starts = range(len(components) - len(wanted) + 1)
    return any(all(part in components[start + i] for i, part in enumerate(wanted)) for start in starts)
