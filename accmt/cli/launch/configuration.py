"""From the arguments of `accmt launch` to the processes that it starts, as a configuration of Accelerate."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from accmt.cli.arguments import CommandError, UsageError
from accmt.cli.launch.hardware import cores, installed, visible_gpus
from accmt.cli.launch.strats import configuration_of
from accmt.config.errors import ConfigError, Problem, must_be

_DEFAULT_PORT = 29500
_TRUE = ("1", "t", "true", "y", "yes", "on")
_DDP = ("NO", "MULTI_CPU", "MULTI_GPU")
_ON_NVIDIA_GPUS = ("MULTI_GPU", "FSDP", "DEEPSPEED")


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """Processes to start on this machine.

    Attributes:
        source: The strategy or file that says how.
        configuration: Accelerate's configuration: that of the source, with what the call and this machine add.
        environment: Variables of the processes, besides those that the configuration sets.
        is_script_itself: True for one process that needs no other variables.
    """

    source: str
    configuration: dict[str, Any]
    environment: dict[str, str]
    is_script_itself: bool

    def __str__(self) -> str:
        """Describe the strategy and the processes, which may be defaults."""
        machines: int = self.configuration["num_machines"]
        count = self.configuration["num_processes"] // machines
        words = f"{self.source}, {count} process{'' if count == 1 else 'es'}"
        if self.configuration["use_cpu"] or "DS_ACCELERATOR" in self.environment:
            words += " on CPUs"
        return f"{words}, on each of {machines} machines" if machines > 1 else words


def launch_command(options: argparse.Namespace) -> LaunchCommand:
    """Return the processes that the arguments ask for.

    Raises:
        UsageError: The arguments contradict each other.
        CommandError: This machine or the file lacks what they ask for. With `--print` the machine is not checked.
    """
    source = options.config or options.strat or "ddp"
    given = configuration_of(source) if options.config is None else _read(source)
    given |= _place(options, given)
    on_cpus = _is_on_cpus(source, options, given)
    here = _processes(options, given, on_cpus)
    total = here * given["num_machines"]
    kind = given["distributed_type"]
    if kind == "DEEPSPEED" and installed("deepspeed") is None and not options.print:
        raise CommandError(f"{source} needs DeepSpeed, which is not installed: pip install deepspeed")
    if kind in _DDP and not given.get("mpirun_config"):
        # Accelerate would start a single process for MULTI_CPU. For MULTI_GPU it starts all, and with
        # ACCELERATE_USE_CPU in their environment they run on CPUs.
        kind = "MULTI_GPU" if total > 1 else "NO"
    given |= {"distributed_type": kind, "use_cpu": on_cpus and kind in _DDP, "num_processes": total}
    environment = {}
    if options.gpus is not None:
        visible = dict(enumerate(visible_gpus()))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible.get(index, str(index)) for index in options.gpus)
        given["gpu_ids"] = "all"  # of these
    if on_cpus and kind == "DEEPSPEED":
        # ACCELERATE_USE_CPU would disable DeepSpeed: hide the GPUs instead.
        environment = {"ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    elif on_cpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    is_script_itself = kind == "NO" and options.config is None
    if is_script_itself:
        environment["ACCELERATE_MIXED_PRECISION"] = given["mixed_precision"]
    elif on_cpus and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, cores() // here))
    return LaunchCommand(source, given, environment, is_script_itself)


def _read(path: str) -> dict[str, Any]:
    """Read a file of Accelerate.

    Raises:
        CommandError: It cannot be read, or what is read here is wrong. Accelerate checks the rest.
    """
    from accmt.config.document import read_document  # imports yaml, which most commands do not need

    try:
        document = {str(key): value for key, value in read_document(path).items()}
        if problems := list(_problems(document)):
            raise ConfigError(problems, path)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    return document


def _problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    kind, place = document.get("distributed_type"), document.get("compute_environment", "LOCAL_MACHINE")
    if not isinstance(kind, str):
        text = "Is this a file of `accelerate config`? There it is MULTI_GPU, FSDP or the like"
        yield Problem("distributed_type", f"is missing or not a string. {text}")
    if kind == "XLA" or place != "LOCAL_MACHINE":
        key, value = ("distributed_type", kind) if kind == "XLA" else ("compute_environment", place)
        yield Problem(key, f"is {value}, which torchrun cannot start: use `accelerate launch --config_file`")
    for key, least in (("num_processes", 1), ("num_machines", 1), ("machine_rank", 0)):
        value = document.get(key, least)
        is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not is_whole and (key, value) != ("num_processes", -1):  # -1: Accelerate leaves it to the caller
            yield Problem(key, must_be(f"a whole number from {least}", value))
    section = document.get("deepspeed_config")
    launcher = section.get("deepspeed_multinode_launcher", "standard") if isinstance(section, Mapping) else "standard"
    if document.get("num_machines", 1) != 1 and launcher != "standard":
        text = f"is {launcher}, which starts all machines from one. Set it to standard, and call accmt launch on each"
        yield Problem("deepspeed_config.deepspeed_multinode_launcher", text)


def _place(options: argparse.Namespace, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many machines take part, which of them this one is, and where they meet.

    Raises:
        UsageError: One of these is missing, wrong, or given without need.
    """
    for name, value in (("--node-rank", options.node_rank), ("--master", options.master)):
        if value is not None and options.nodes is None and "num_machines" not in given:
            raise UsageError(f"{name} needs --nodes: how many machines take part")
    machines = options.nodes or given.get("num_machines", 1)
    rank = given.get("machine_rank") if options.node_rank is None else options.node_rank
    host, port = options.master or (given.get("main_process_ip"), given.get("main_process_port"))
    allowed = "0" if machines == 1 else f"0 to {machines - 1}"
    if machines > 1 and rank is None:
        raise UsageError(f"--nodes {machines} needs --node-rank: which of them this machine is, {allowed}")
    if machines > 1 and not host:
        where = "--master HOST[:PORT]: where the machine with --node-rank 0 is reached"
        raise UsageError(f"--nodes {machines} needs {where}")
    if (rank or 0) >= machines:
        raise UsageError(f"--node-rank {rank}: with --nodes {machines} it is {allowed}")
    # On one machine, 0: a free port is found at the start, so that several trainings can start at once.
    port = port or (0 if machines == 1 else _DEFAULT_PORT)
    return {"num_machines": machines, "machine_rank": rank or 0, "main_process_ip": host, "main_process_port": port}


def _is_on_cpus(source: str, options: argparse.Namespace, given: Mapping[str, Any]) -> bool:
    """Return whether to train on CPUs.

    Raises:
        UsageError: The configuration, its precision or `--gpus` needs GPUs.
    """
    kind = given["distributed_type"]
    by_environment = os.environ.get("ACCELERATE_USE_CPU", "").lower() in _TRUE
    if not (options.cpu or by_environment or given.get("use_cpu") is True or kind == "MULTI_CPU"):
        return False
    if options.gpus is not None:
        asking = "--cpu" if options.cpu else "ACCELERATE_USE_CPU" if by_environment else source
        raise UsageError(f"--gpus cannot be combined with {asking}, which selects CPUs: use one of them")
    if kind == "FSDP":
        raise UsageError(f"{source} needs GPUs: on CPUs, Accelerate would train as ddp does. Use --strat ddp")
    if options.cpu and kind not in (*_DDP, "DEEPSPEED"):
        raise UsageError(f"{source} is {kind}, which cannot be combined with --cpu")
    if given.get("mixed_precision") == "fp16":
        raise UsageError(f"{source}: fp16 needs a GPU: on CPUs use bf16")
    return True


def _processes(options: argparse.Namespace, given: Mapping[str, Any], on_cpus: bool) -> int:
    """Return how many processes to start here: as many as asked for, else one per GPU, or one on CPUs.

    Raises:
        UsageError: The arguments contradict each other, or nothing determines the number.
        CommandError: There are fewer GPUs.
    """
    total, machines, named = given.get("num_processes", -1), given["num_machines"], len(options.gpus or ())
    if named and options.processes not in (None, named):
        text = "each GPU runs one process. Leave out -N, or name as many"
        raise UsageError(f"-N is {options.processes}, and --gpus names {named}: {text}")
    asked: int = named or options.processes or max(total // machines, 0)
    if not (named or options.processes) and total > 0 and total % machines:
        raise UsageError(f"num_processes is {total}, which {machines} machines cannot share evenly: give -N")
    if on_cpus or (given["distributed_type"] not in _ON_NVIDIA_GPUS and not named):
        return asked or 1
    count = len(visible_gpus())
    if options.print and not (asked or count):
        raise UsageError("no NVIDIA GPU was found here to count: give -N, --gpus or --cpu")
    # A file may be for other accelerators, which cannot be counted here.
    is_uncounted = asked and not count and options.config is not None and not named
    if not (options.print or is_uncounted):
        _check_gpus(count, asked or 1, max(options.gpus or [0]))
    return asked or count


def _check_gpus(count: int, processes: int, last: int) -> None:
    """Check that there are as many GPUs as processes, and one with the number `last`.

    Raises:
        CommandError: There are not.
    """
    if count == 0:
        raise CommandError("no NVIDIA GPU was found here: use --cpu to train on CPUs")
    found = "there is 1 GPU here" if count == 1 else f"there are {count} GPUs here"
    if last >= count:
        raise CommandError(f"{found}, counted from 0: --gpus cannot name {last}")
    if processes > count:
        raise CommandError(f"{found}, and {processes} processes need one each: use -N {count}, or --cpu")
