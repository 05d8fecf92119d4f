"""Metrics, and the gatherers that feed them with what `validation_step` returns."""

from accmt.metrics.metric import FunctionMetric, Metric, MetricParallel
from accmt.metrics.torchmetrics import TorchMetric

__all__ = ["FunctionMetric", "Metric", "MetricParallel", "TorchMetric"]
