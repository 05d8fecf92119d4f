"""Adapter for metrics of the torchmetrics library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accmt.metrics.metric import Metric, answering_earlier

if TYPE_CHECKING:
    from torchmetrics import Metric as TorchmetricsMetric


class TorchMetric(Metric):
    """A torchmetrics object as a metric: its state is updated batch by batch and synchronized over the processes.

    It keeps no predictions (unless the object does) and is as exact as the object.

    Args:
        name: The name of the metric.
        metric: The torchmetrics object; it is moved to the device and reset by the trainer.
        greater_is_better: The direction, or a mapping of directions by output; by default the object's
            `higher_is_better`.
        main_metric: For an object that returns several values, the key of the main one.

    Raises:
        ValueError: The object does not say its direction and none is given.
    """

    @answering_earlier
    def __init__(
        self,
        name: str,
        metric: TorchmetricsMetric,
        greater_is_better: bool | Mapping[str, bool] | None = None,
        main_metric: str | None = None,
    ) -> None:
        direction = getattr(metric, "higher_is_better", None) if greater_is_better is None else greater_is_better
        if direction is None:
            raise ValueError(
                f"{type(metric).__name__} does not say whether higher is better: give greater_is_better=True or False"
            )
        super().__init__(name, direction, main_metric, do_checks=False, cast=None)
        self.metric = metric

    def compute(self, *args: Any) -> Mapping[str, Any]:
        """Compute the values for these arguments alone, outside of a training."""
        self.metric.reset()
        self.metric.update(*args)
        return self.values()

    def values(self) -> Mapping[str, Any]:
        """Compute the values of the state collected since the last reset."""
        value = self.metric.compute()
        return value if isinstance(value, Mapping) else {self.main_metric: value}
