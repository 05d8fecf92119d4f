"""Strategies for training on several processes, by name, and their Accelerate settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from accmt.cli.arguments import UsageError
from accmt.config.errors import did_you_mean

# Suffix of a strategy's name -> Accelerate's name.
PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy for training on several processes.

    `kind` is Accelerate's name for it (its `distributed_type`), and `section` its settings, under the name
    `section_name`. `environment` has the variables for the processes of the training; Accelerate's launcher derives
    them from the configuration, and under `torchrun` they have the same effect.
    """

    name: str
    kind: str
    what: str
    when: str
    on_cpus: bool
    section_name: str = ""
    section: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def needs_deepspeed(self) -> bool:
        """True if the package deepspeed has to be installed."""
        return self.kind == "DEEPSPEED"


def find(name: str) -> tuple[Strategy, str | None]:
    """Return the strategy of a name such as `fsdp2` or `ddp-bf16`, and its precision by Accelerate's name, None if the
    name has none.

    Raises:
        UsageError: If there is no such strategy.
    """
    found = _NAMES.get(name)
    if found is None:
        names, ends = ", ".join(strategy.name for strategy in STRATEGIES), ", ".join(f"-{end}" for end in PRECISIONS)
        raise UsageError(
            f"--strat: there is no strategy '{name}'{did_you_mean(name, _NAMES)} There are {names}; each may end with "
            f"{ends}"
        )
    return found


def _deepspeed(stage: int, what: str, when: str) -> Strategy:
    section: dict[str, object] = {
        "zero_stage": stage,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero3_save_16bit_model": stage == 3,
        # Each machine starts its own processes, as with the other strategies; DeepSpeed's default would use ssh.
        "deepspeed_multinode_launcher": "standard",
    }
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": str(stage == 3).lower(),
    }
    return Strategy(f"deepspeed-{stage}", "DEEPSPEED", what, when, True, "deepspeed_config", section, environment)


STRATEGIES = (
    Strategy(
        "ddp",
        "MULTI_GPU",
        "the whole model on every process",
        "the model and its optimizer fit into the memory of one GPU",
        on_cpus=True,
    ),
    Strategy(
        "fsdp2",
        "FSDP",
        "the model, its gradients and its optimizer are shared out over the GPUs",
        "they do not fit into the memory of one GPU",
        on_cpus=False,
        section_name="fsdp_config",
        section={
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_offload_params": False,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_activation_checkpointing": False,
        },
        environment={
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_OFFLOAD_PARAMS": "false",
            "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
            "FSDP_ACTIVATION_CHECKPOINTING": "false",
        },
    ),
    _deepspeed(0, "the whole model on every process, driven by DeepSpeed", "to compare the other stages with"),
    _deepspeed(1, "the optimizer is shared out (ZeRO 1)", "the optimizer does not fit beside the model"),
    _deepspeed(2, "the optimizer and the gradients are shared out (ZeRO 2)", "the gradients do not fit either"),
    _deepspeed(3, "the model is shared out as well (ZeRO 3)", "the model does not fit into the memory of one GPU"),
)

_NAMES: dict[str, tuple[Strategy, str | None]] = {
    strategy.name + (end and f"-{end}"): (strategy, PRECISIONS.get(end))
    for strategy in STRATEGIES
    for end in ("", *PRECISIONS)
}
