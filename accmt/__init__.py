"""accmt: a trainer for PyTorch on Hugging Face Accelerate.

A small language declares when to save a model, checkpoint, evaluate and stop; one engine decides. The names below are
loaded on first use: importing accmt imports neither torch nor accelerate.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from accmt.earlier import NAMES, refuse

if TYPE_CHECKING:
    from accmt.callbacks import Callback
    from accmt.checkpoint.loading import load_saving
    from accmt.collate_fns import (
        DataCollatorForLanguageModeling,
        DataCollatorForLongestSequence,
        DataCollatorForSeq2Seq,
    )
    from accmt.decorators import (
        on_last_process,
        on_local_main_process,
        on_local_process,
        on_main_process,
        on_process,
    )
    from accmt.distributed.failures import PeerFailed
    from accmt.distributed.signals import Terminated
    from accmt.hp_search import HyperParameterSearch
    from accmt.hyperparameters import ConfigError, HyperParameters, Optimizer, Scheduler
    from accmt.metrics import FunctionMetric, Metric, MetricParallel, TorchMetric
    from accmt.module import AcceleratorModule, ExtendedAcceleratorModule
    from accmt.monitor import Monitor
    from accmt.rules import RuleError
    from accmt.seeding import set_seed
    from accmt.setup.best import load_best
    from accmt.states import TrainingState
    from accmt.tracking.history import TrainingHistory
    from accmt.trainer import Trainer

__version__ = "0.1.0"

_HOMES = {
    "AcceleratorModule": "accmt.module",
    "Callback": "accmt.callbacks",
    "ConfigError": "accmt.config.errors",
    "DataCollatorForLanguageModeling": "accmt.collate_fns",
    "DataCollatorForLongestSequence": "accmt.collate_fns",
    "DataCollatorForSeq2Seq": "accmt.collate_fns",
    "ExtendedAcceleratorModule": "accmt.module",
    "FunctionMetric": "accmt.metrics",
    "HyperParameterSearch": "accmt.hp_search",
    "HyperParameters": "accmt.hyperparameters",
    "Metric": "accmt.metrics",
    "MetricParallel": "accmt.metrics",
    "Monitor": "accmt.monitor",
    "Optimizer": "accmt.hyperparameters",
    "PeerFailed": "accmt.distributed.failures",
    "RuleError": "accmt.rules",
    "Scheduler": "accmt.hyperparameters",
    "Terminated": "accmt.distributed.signals",
    "TorchMetric": "accmt.metrics",
    "Trainer": "accmt.trainer",
    "TrainingHistory": "accmt.tracking.history",
    "TrainingState": "accmt.states",
    "load_best": "accmt.setup.best",
    "load_saving": "accmt.checkpoint.loading",
    "on_last_process": "accmt.decorators",
    "on_local_main_process": "accmt.decorators",
    "on_local_process": "accmt.decorators",
    "on_main_process": "accmt.decorators",
    "on_process": "accmt.decorators",
    "set_seed": "accmt.seeding",
}

__all__ = [
    "AcceleratorModule",
    "Callback",
    "ConfigError",
    "DataCollatorForLanguageModeling",
    "DataCollatorForLongestSequence",
    "DataCollatorForSeq2Seq",
    "ExtendedAcceleratorModule",
    "FunctionMetric",
    "HyperParameterSearch",
    "HyperParameters",
    "Metric",
    "MetricParallel",
    "Monitor",
    "Optimizer",
    "PeerFailed",
    "RuleError",
    "Scheduler",
    "Terminated",
    "TorchMetric",
    "Trainer",
    "TrainingHistory",
    "TrainingState",
    "__version__",
    "load_best",
    "load_saving",
    "on_last_process",
    "on_local_main_process",
    "on_local_process",
    "on_main_process",
    "on_process",
    "set_seed",
]


def __getattr__(name: str) -> Any:
    if name in NAMES:
        refuse(name)
    if name not in _HOMES:
        raise AttributeError(f"module 'accmt' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
