"""Distribution of a model over the processes of a training, and what follows from it.

nothing             one process
replicas            DistributedDataParallel, and DeepSpeed's stages 0 to 2: each process has the whole model
sharded             FSDP2, and DeepSpeed's stage 3: each has a part, and a forward pass needs all processes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from accmt.distributed.weight_names import by_plain_name

REPLICATED = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
PLAIN = (DistributedType.NO, *REPLICATED)

_GATHERED_AT_ONCE = 2**28


def is_deepspeed(accelerator: Accelerator) -> bool:
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def is_fsdp(accelerator: Accelerator) -> bool:
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def shards_model(accelerator: Accelerator) -> bool:
    """Return whether each process holds only a part of the model, so that all must make the same forward passes."""
    return is_fsdp(accelerator) or (is_deepspeed(accelerator) and accelerator.deepspeed_plugin.zero_stage == 3)


def holds_replicas(accelerator: Accelerator) -> bool:
    """Return whether there are several processes that each hold the whole model."""
    return bool(accelerator.num_processes > 1) and not shards_model(accelerator)


def whole_weights(model: nn.Module, accelerator: Accelerator) -> Mapping[str, Any]:
    """Return the state dict of the whole model, unwrapped, on the main process; call it on all processes.

    Where the model is sharded, the other processes get an empty one, and the tensors are copies in main memory.

    Args:
        model: The unwrapped model.
        accelerator: The Accelerator that prepared it.
    """
    if is_fsdp(accelerator):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        return by_plain_name(model, whole)
    if shards_model(accelerator):
        return by_plain_name(model, _gathered(model, accelerator.is_main_process))
    return by_plain_name(model, model.state_dict())


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor on this process; all of it if the tensor is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def alike(part: Tensor, tensor: Any) -> Tensor:
    """Build a tensor that is sharded like another one, from the part on this process."""
    if not hasattr(tensor, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    # Pass the full shape: it cannot be inferred from parts of different sizes.
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride(), run_check=False
    )


def _gathered(model: nn.Module, keeps: bool) -> dict[str, Any]:
    """Gather the weights that DeepSpeed's stage 3 has partitioned, a few hundred megabytes at a time."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    # The state dict lists tied weights under each of their names; buffers and extra state are whole everywhere.
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    whole: dict[int, Tensor] = {}
    for group in _groups(list(model.parameters())):
        with GatheredParameters(group):
            if keeps:
                whole |= {id(parameter): parameter.detach().to("cpu", copy=True) for parameter in group}
    if not keeps:
        return {}
    assert whole.keys() == names.keys()
    own = model.state_dict(keep_vars=True)
    return {name: whole.get(id(value), value) for name, value in own.items()}


def _groups(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        count: int = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        if not groups or size + count > _GATHERED_AT_ONCE:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += count
    return groups
