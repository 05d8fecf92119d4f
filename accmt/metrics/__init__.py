"""Metrics, and the gatherers that feed them with the results of `validation_step`."""

from accmt.metrics.metric import FunctionMetric, Metric, MetricParallel
from accmt.metrics.torchmetrics import TorchMetric

__all__ = ["FunctionMetric", "Metric", "MetricParallel", "TorchMetric"]
