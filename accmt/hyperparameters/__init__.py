"""Hyperparameters of a training: `HyperParameters`, the names in `Optimizer` and `Scheduler`, and their files.

    hps = HyperParameters(epochs=3, optimizer="AdamW", optim_kwargs={"lr": 1e-3}, scheduler="LinearWithWarmup")
    config = load_config("hps.yaml")

Neither transformers nor accelerate is imported here.
"""

from accmt.config.errors import ConfigError, Problem
from accmt.hyperparameters.config import Config, load_config
from accmt.hyperparameters.optimizers import Optimizer
from accmt.hyperparameters.schedulers import Scheduler
from accmt.hyperparameters.values import HyperParameters

__all__ = ["Config", "ConfigError", "HyperParameters", "Optimizer", "Problem", "Scheduler", "load_config"]
