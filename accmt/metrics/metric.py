"""Metrics: values computed from the outputs of a whole validation dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from accmt.earlier import answering

answering_earlier = answering(
    comparator='give greater_is_better=True for ">", False for "<"',
    higher_is_better="give greater_is_better",
    pad_value="give pad",
)


class Metric:
    """A metric that is computed once per dataset, on the main process, from the outputs of all processes.

    Subclass it and write `compute`. The values are exact: as if one process had seen the dataset once, in order.

        class F1(Metric):
            def compute(self, predictions, targets):
                hits = (predictions * targets).sum()
                return {"f1": 2 * hits / (predictions.sum() + targets.sum())}

        trainer = Trainer(hps, "runs/f1", metrics=F1("f1"))

    Args:
        name: The name under which `validation_step` returns its arguments.
        greater_is_better: The direction of the main value. Or a mapping from outputs of `compute` to directions, the
            main one included: rules can then use each of these outputs.
        main_metric: The key of the main value in the result of `compute`; by default `name`. It is the name in rules.
        do_checks: Check in every batch that all arguments have the same number of samples.
        cast: The dtype that floating point tensors are converted to before they are kept. `torch.float32`, the default,
            converts lower precisions and leaves float64 unchanged; any other dtype applies to all. None leaves all
            tensors unchanged.
        pad: The number with which tensors are padded, at the ends of all dimensions but the first, to the longest of
            all batches. None: tensors that differ in more than their number of samples are an error.

    Raises:
        ValueError: An argument is not possible.

    Attributes:
        per_sample: Whether values are means of a score per sample; a subclass sets it. Then `compute` is called for
            each batch, on its device, and returns for each value a tensor with one score for each sample. The value is
            their mean over all samples, and nothing is kept, except the scores if a rule asks for standard errors. For
            a mean over parts of samples, such as tokens, it returns a pair of such tensors: for each sample the sum of
            the scores of its parts, and their number.
    """

    per_sample = False

    @answering_earlier
    def __init__(
        self,
        name: str,
        greater_is_better: bool | Mapping[str, bool] = True,
        main_metric: str | None = None,
        do_checks: bool = True,
        cast: torch.dtype | str | None = torch.float32,
        *,
        pad: float | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a metric needs a name, not {name!r}")
        self.name = name
        self.main_metric = main_metric or name
        self.directions = _directions(name, self.main_metric, greater_is_better)
        self.do_checks = do_checks
        self.cast = _dtype(cast)
        if pad is not None and not isinstance(pad, int | float):
            raise ValueError(f"pad of '{name}' must be a number, or None, not {pad!r}")
        self.pad = pad

    @property
    def greater_is_better(self) -> bool:
        """Direction of the main value."""
        return self.directions[self.main_metric]

    def kept_as(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which tensors of a dtype are kept."""
        if self.cast is None or not dtype.is_floating_point:
            return dtype
        return dtype if self.cast is torch.float32 and torch.finfo(dtype).bits > 32 else self.cast

    def compute(self, *args: Any) -> Mapping[str, Any]:
        """Compute the values from the arguments of all samples.

        Args:
            *args: What `validation_step` returned under the name of the metric, joined over all batches and processes:
                the first dimension of tensors is the samples of the dataset, in order.

        Returns:
            Name -> value, with at least the values whose direction is given. Values are numbers: float, int, a tensor
            or NumPy value with one element.
        """
        raise NotImplementedError(f"{type(self).__name__} has no compute")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class MetricParallel(Metric):
    """A metric that each process computes over its own samples; the values are averaged, weighted by sample count.

    Cheaper than `Metric` for large predictions, but exact only for metrics that are means over samples. The arguments
    are those of `Metric`; floating point tensors are not converted.
    """

    @answering_earlier
    def __init__(
        self,
        name: str,
        greater_is_better: bool | Mapping[str, bool] = True,
        main_metric: str | None = None,
        do_checks: bool = True,
        *,
        pad: float | None = None,
    ) -> None:
        super().__init__(name, greater_is_better, main_metric, do_checks, cast=None, pad=pad)


class FunctionMetric(Metric):
    """A metric from a plain function of the gathered arguments that returns one number, or a dict of numbers.

        error = FunctionMetric("error", lambda guesses, true: (guesses - true).abs().mean(), greater_is_better=False)

    Args:
        name: The name of the metric.
        function: Called as `function(predictions, targets, ...)`.
        greater_is_better: The direction of the value, or of several values by name. It has no default: an error measure
            could be mistaken for an accuracy, and the worst model kept.
        cast, pad: As in `Metric`.
        per_sample: The function returns a tensor with one score for each sample, such as whether a guess is right, and
            the metric is their mean over all samples. The function is called for each batch, on its device, and nothing
            is kept, except the scores if a rule asks for standard errors. For a mean over tokens or other parts, see
            `Metric`.

    Raises:
        ValueError: An argument is not possible.
    """

    @answering_earlier
    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        greater_is_better: bool | Mapping[str, bool],
        *,
        cast: torch.dtype | str | None = torch.float32,
        pad: float | None = None,
        per_sample: bool = False,
    ) -> None:
        super().__init__(name, greater_is_better, cast=cast, pad=pad)
        if not callable(function):
            raise ValueError(f"'{name}' needs a function, not {function!r}")
        if per_sample and pad is not None:
            raise ValueError(
                f"pad of '{name}' has no effect with per_sample=True, which joins no batches: leave it out"
            )
        self.per_sample = per_sample
        self.function = function

    def compute(self, *args: Any) -> Mapping[str, Any]:
        value = self.function(*args)
        return value if isinstance(value, Mapping) else {self.name: value}


def _directions(name: str, main: str, greater_is_better: bool | Mapping[str, bool]) -> dict[str, bool]:
    """Return output -> whether greater is better, the main output first."""
    given = greater_is_better if isinstance(greater_is_better, Mapping) else {main: greater_is_better}
    wrong = [value for value in given.values() if not isinstance(value, bool)]
    if wrong:
        raise ValueError(f"greater_is_better of '{name}' must be True or False, not {wrong[0]!r}")
    if main not in given:
        listed = ", ".join(map(repr, given)) or "nothing"
        what = f"greater_is_better of '{name}' has no entry for its main value '{main}', only for {listed}"
        raise ValueError(f"{what}: add it, or name the metric after one of them" if given else f"{what}: add it")
    return {main: given[main], **{str(output): value for output, value in given.items() if output != main}}


def _dtype(cast: torch.dtype | str | None) -> torch.dtype | None:
    if cast is None or isinstance(cast, torch.dtype):
        return cast
    found = getattr(torch, cast.removeprefix("torch."), None) if isinstance(cast, str) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"cast is {cast!r}, which is not a torch dtype; for example 'float32'")
    return found
