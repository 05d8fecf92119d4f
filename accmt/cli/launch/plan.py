"""Plan of what `accmt launch` starts: an Accelerate configuration, an environment and a command.

A strategy is a short name for a configuration. Both kinds go through the same checks here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from accmt.cli.arguments import CommandError, UsageError
from accmt.cli.launch.hardware import cores, gpus, installed
from accmt.cli.launch.strategies import find
from accmt.config.errors import ConfigError, Problem, must_be

_DEFAULT_PORT = 29500
_TRUE = ("1", "t", "true", "y", "yes", "on")
_DDP = ("NO", "MULTI_CPU", "MULTI_GPU")
# Accelerate writes this if the number is given on the command line.
_LEFT_OPEN = ("num_processes", -1)
_ON_GPUS = ("MULTI_GPU", "FSDP", "DEEPSPEED")


@dataclass(frozen=True, slots=True)
class Plan:
    """The processes to start.

    `source` is the strategy or file it comes from, `kind` Accelerate's name for it (its `distributed_type`).
    `processes` is their number on this machine; each of `machines` has as many. `environment` is added to that of the
    command. `needs_launcher` is False if nothing is to be launched: one process runs the script itself. A file may have
    further settings, which only Accelerate's launcher reads.
    """

    source: str
    kind: str
    processes: int
    machines: int
    on_cpus: bool
    configuration: Mapping[str, object]
    environment: Mapping[str, str]
    needs_launcher: bool


def plan(options: argparse.Namespace) -> Plan:
    """Make the plan that the arguments ask for.

    Raises:
        UsageError: If the arguments contradict each other.
        CommandError: If this machine or the file lacks what they ask for. With `--print` the machine is not checked.
    """
    if options.config is not None:
        source, given, environment = _from_file(options.config)
    else:
        source, given, environment = _from_strategy(options.strat or "ddp")
    machines = _machines(options, given)
    on_cpus = _on_cpus(options, given)
    processes = _processes(options, given, machines, on_cpus)
    kind = _kind(source, given, processes * machines, on_cpus, options.cpu)
    if kind == "DEEPSPEED" and installed("deepspeed") is None and not options.print:
        raise CommandError(f"{source} needs DeepSpeed, which is not installed: pip install deepspeed")
    if on_cpus and given.get("mixed_precision") == "fp16":
        raise UsageError(f"{source}: fp16 needs a GPU: on CPUs take bf16")
    configuration = {
        "compute_environment": "LOCAL_MACHINE",
        **given,
        "distributed_type": kind,
        "use_cpu": on_cpus and kind in _DDP,
        "num_machines": machines,
        "num_processes": processes * machines,
        **_meeting_point(options, given, machines),
    }
    needs_launcher = kind != "NO" or options.config is not None
    if on_cpus:
        environment = {**environment, **_environment_on_cpus(kind)}
        if needs_launcher and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, cores() // processes))
    return Plan(source, kind, processes, machines, on_cpus, configuration, environment, needs_launcher)


def _from_strategy(text: str) -> tuple[str, dict[str, object], dict[str, str]]:
    """Return the name, configuration and environment of a strategy."""
    strategy, precision = find(text)
    given: dict[str, object] = {"distributed_type": strategy.kind, "mixed_precision": precision or "no"}
    if strategy.section:
        given[strategy.section_name] = dict(strategy.section)
    return text, given, {**strategy.environment, "ACCELERATE_MIXED_PRECISION": precision or "no"}


def _from_file(path: str) -> tuple[str, dict[str, object], dict[str, str]]:
    """Return the name and configuration of a file; Accelerate's launcher handles its environment."""
    from accmt.config.document import read_document  # imports yaml, which most commands do not need

    try:
        document = {str(key): value for key, value in read_document(path).items()}
        problems = list(_problems(document))
        if problems:
            raise ConfigError(problems, path)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    return path, document, {}


def _problems(document: Mapping[str, object]) -> Iterator[Problem]:
    """Check the parts of a file that are read here. Accelerate's launcher checks the rest."""
    if not isinstance(document.get("distributed_type"), str):
        text = "is missing or no text. Is this a file of `accelerate config`? There it is MULTI_GPU, FSDP or the like"
        yield Problem("distributed_type", text)
    for key, least in (("num_processes", 1), ("num_machines", 1), ("machine_rank", 0)):
        value = document.get(key, least)
        if not _is_whole(value, least) and (key, value) != _LEFT_OPEN:
            yield Problem(key, must_be(f"a whole number from {least}", value))


def _machines(options: argparse.Namespace, given: Mapping[str, object]) -> int:
    """Return how many machines take part.

    Raises:
        UsageError: If what distinguishes the machines is missing, or given without need.
    """
    for name, value in (("--node-rank", options.node_rank), ("--master", options.master)):
        if value is not None and options.nodes is None and "num_machines" not in given:
            raise UsageError(f"{name} needs --nodes: how many machines take part")
    machines = options.nodes or _number(given, "num_machines", 1)
    rank = options.node_rank if options.node_rank is not None else _number(given, "machine_rank", 0)
    if machines > 1:
        if options.node_rank is None and "machine_rank" not in given:
            raise UsageError(
                f"--nodes {machines} needs --node-rank: which of them this machine is, 0 to {machines - 1}"
            )
        if options.master is None and not given.get("main_process_ip"):
            raise UsageError(
                f"--nodes {machines} needs --master HOST[:PORT]: where the machine with --node-rank 0 is reached"
            )
    if rank >= machines:
        allowed = "0" if machines == 1 else f"0 to {machines - 1}"
        raise UsageError(f"--node-rank {rank}: with --nodes {machines} it is {allowed}")
    return machines


def _meeting_point(options: argparse.Namespace, given: Mapping[str, object], machines: int) -> dict[str, object]:
    """Return the rendezvous settings. On one machine a free port is chosen at the start, so that several trainings can
    start at once."""
    rank = options.node_rank if options.node_rank is not None else _number(given, "machine_rank", 0)
    host, port = options.master or (given.get("main_process_ip"), given.get("main_process_port"))
    if machines == 1:
        return {"machine_rank": 0, "main_process_port": port or 0}
    return {
        "machine_rank": rank,
        "main_process_ip": host,
        "main_process_port": port or _DEFAULT_PORT,
        "rdzv_backend": given.get("rdzv_backend", "static"),
        "same_network": given.get("same_network", True),
    }


def _on_cpus(options: argparse.Namespace, given: Mapping[str, object]) -> bool:
    asked = options.cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in _TRUE
    return asked or given.get("use_cpu") is True or given["distributed_type"] == "MULTI_CPU"


def _processes(options: argparse.Namespace, given: Mapping[str, object], machines: int, on_cpus: bool) -> int:
    """Return how many processes to start here: the number asked for, else one per GPU, or one on CPUs.

    Raises:
        UsageError: If nothing determines the number.
        CommandError: If there are fewer GPUs.
    """
    total = _number(given, "num_processes", -1)
    asked: int | None = options.processes
    if asked is None and total > 0:
        if total % machines:
            raise UsageError(f"num_processes is {total}, which {machines} machines cannot share evenly: give -N")
        asked = total // machines
    if on_cpus or given["distributed_type"] not in _ON_GPUS:
        return asked or 1
    there = gpus()
    if options.print and asked is None and there == 0:
        raise UsageError("no NVIDIA GPU was found here to count: give -N, or --cpu")
    # A file may be for other accelerators, which cannot be counted here.
    is_uncounted = asked is not None and there == 0 and options.config is not None
    if not (options.print or is_uncounted) and (asked or 1) > there:
        raise CommandError(_too_few(asked or 1, there))
    return asked or there


def _too_few(asked: int, there: int) -> str:
    if there == 0:
        return "no NVIDIA GPU was found here: add --cpu to train on CPUs"
    found = "there is 1 GPU" if there == 1 else f"there are {there} GPUs"
    return f"{found} here, and {asked} processes need one each: take -N {there}, or --cpu"


def _kind(source: str, given: Mapping[str, object], processes: int, on_cpus: bool, asked_for_cpus: bool) -> str:
    """Return Accelerate's `distributed_type` for what is started."""
    kind = str(given["distributed_type"])
    if on_cpus and kind == "FSDP":
        raise UsageError(f"{source} needs GPUs: on CPUs, Accelerate would train as ddp does. Take --strat ddp")
    if asked_for_cpus and kind not in (*_DDP, "DEEPSPEED"):
        raise UsageError(f"{source} is {kind}, which does not go with --cpu")
    if kind not in _DDP or given.get("mpirun_config"):
        return kind
    # MULTI_CPU, and --cpu of Accelerate's launcher, start a single process unless mpirun is used. MULTI_GPU starts all
    # of them, and with ACCELERATE_USE_CPU in the environment they run on CPUs, with gloo.
    return "MULTI_GPU" if processes > 1 else "NO"


def _environment_on_cpus(kind: str) -> dict[str, str]:
    if kind == "DEEPSPEED":
        # ACCELERATE_USE_CPU would disable DeepSpeed: hide the GPUs instead.
        return {"ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {"ACCELERATE_USE_CPU": "true"}


def _number(given: Mapping[str, object], key: str, default: int) -> int:
    value = given.get(key)
    return value if isinstance(value, int) else default


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
