"""`accmt launch` and `accmt strats` before anything starts: what is refused, what is shown, what would be started."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pynvml
import pytest
import yaml

from accmt.cli.launch import hardware, launcher
from accmt.cli.launch.strategies import PRECISIONS, STRATEGIES
from accmt.cli.main import main

PAGE = (Path(__file__).parent.parent.parent / "docs" / "command-line.md").read_text()
NAMES = [strategy.name + end for strategy in STRATEGIES for end in ("", *(f"-{end}" for end in PRECISIONS))]
CPUS = {"ACCELERATE_USE_CPU": "true"}


@pytest.fixture(autouse=True)
def _nobody_says_how(monkeypatch, tmp_path):
    """A folder with a script; nothing in the environment says how to train."""
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()


@pytest.fixture(autouse=True)
def there_are(monkeypatch):
    """A number -> as if this machine had so many GPUs; at first it has none."""

    def pretend(count):
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: count)

    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    return pretend


@pytest.fixture
def without_deepspeed(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(hardware, "version", missing)


@pytest.fixture
def launch(capsys, monkeypatch):
    """Arguments -> status, stdout, stderr without the usage, and the command that this process would become."""
    became = []
    monkeypatch.setattr(os, "execve", lambda *command: became.append(command))

    def run(*arguments):
        became.clear()
        try:
            status = main(["launch", *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        output, errors = capsys.readouterr()
        return status, output, re.sub(r"\Ausage:(.|\n)*?\n(?=accmt)", "", errors), *became

    return run


def configuration_of(text):
    return yaml.safe_load(re.search(r"<<'END'\n(.*?)\nEND\n", text, re.DOTALL)[1])


def exports_of(text):
    lines = [line.removeprefix("export ") for line in text.splitlines() if line.startswith("export ")]
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


ALL = "There are ddp, fsdp2, deepspeed-0, deepspeed-1, deepspeed-2, deepspeed-3; each may end with -bf16, -fp16, -fp32"
WRONG_CALLS = [
    ("--strat dpp train.py", f"--strat: there is no strategy 'dpp', did you mean 'ddp'? {ALL}"),
    ("--strat fsdp2-bf32 train.py", f"--strat: there is no strategy 'fsdp2-bf32', did you mean 'fsdp2-fp32'? {ALL}"),
    ("--strat horovod train.py", f"--strat: there is no strategy 'horovod'. {ALL}"),
    ("--strat ddp --config a.yaml train.py", "--strat and --config both say how to train: give one of them"),
    (
        "--cpu --strat fsdp2-bf16 train.py",
        "fsdp2-bf16 needs GPUs: on CPUs, Accelerate would train as ddp does. Take --strat ddp",
    ),
    ("--cpu --strat ddp-fp16 train.py", "ddp-fp16: fp16 needs a GPU: on CPUs take bf16"),
    ("--cpu --strat deepspeed-1-fp16 train.py", "deepspeed-1-fp16: fp16 needs a GPU: on CPUs take bf16"),
    ("--node-rank 0 train.py", "--node-rank needs --nodes: how many machines take part"),
    ("--master a train.py", "--master needs --nodes: how many machines take part"),
    ("--nodes 3 --master a train.py", "--nodes 3 needs --node-rank: which of them this machine is, 0 to 2"),
    (
        "--nodes 2 --node-rank 1 train.py",
        "--nodes 2 needs --master HOST[:PORT]: where the machine with --node-rank 0 is reached",
    ),
    ("--nodes 2 --node-rank 2 --master a train.py", "--node-rank 2: with --nodes 2 it is 0 to 1"),
    ("--nodes 1 --node-rank 1 train.py", "--node-rank 1: with --nodes 1 it is 0"),
    ("--nodes 2 --node-rank -1 train.py", "argument --node-rank: '-1' is not a whole number of at least 0"),
    ("--nodes 2 --node-rank one train.py", "argument --node-rank: 'one' is not a whole number of at least 0"),
    ("-N 0 train.py", "argument -N: '0' is not a whole number of at least 1"),
    (
        "--nodes 2 --master a:b train.py",
        "argument --master: 'a:b' is not HOST or HOST:PORT, such as node-a:29500 or [fe80::1]:29500",
    ),
    (
        "--nodes 2 --master fe80::1 train.py",
        "argument --master: 'fe80::1' is not HOST or HOST:PORT, such as node-a:29500 or [fe80::1]:29500",
    ),
    (
        "--nodes 2 --master a:65536 train.py",
        "argument --master: 'a:65536': a port is a whole number from 1 to 65535",
    ),
    ("--cpu -N 2", "the following arguments are required: SCRIPT"),
    ("--print train.py", "no NVIDIA GPU was found here to count: give -N, or --cpu"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG_CALLS, ids=lambda value: value)
def test_calls_that_are_refused(launch, arguments, text):
    assert launch(*arguments.split()) == (2, "", f"accmt launch: error: {text}\n")


def test_options_behind_the_script_are_its_own_and_unknown_ones_before_it_are_refused(launch):
    assert launch("--gpus", "train.py")[:3] == (2, "", "accmt: error: unrecognized arguments: --gpus\n")
    assert launch("--cpu", "train.py", "--gpus", "--cpu")[3][1][-2:] == ["--gpus", "--cpu"]


def test_scripts_that_are_not_there(launch, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = {
        ("trian.py",): f"there is no script trian.py, seen from {tmp_path}, did you mean 'train.py'?",
        ("other.sh",): f"there is no script other.sh, seen from {tmp_path}.",
        ("empty",): "empty is a directory without a __main__.py",
        ("-m", "projekt.train"): f"there is no module 'projekt', seen from {tmp_path}",
    }
    for arguments, text in cases.items():
        assert launch("--cpu", *arguments) == (1, "", f"{text}\n")
    (tmp_path / "empty" / "__main__.py").touch()
    for arguments in (("empty",), ("-m", "empty"), ("-m", "train"), ("-m", "json.tool")):
        assert len(launch("--cpu", *arguments)) == 4


def test_machines_without_enough_gpus(launch, there_are, monkeypatch):
    none = (1, "", "no NVIDIA GPU was found here: add --cpu to train on CPUs\n")
    assert launch("train.py") == none
    assert launch("-N", 2, "--strat", "fsdp2", "train.py") == none
    there_are(4)
    few = "there are 4 GPUs here, and 5 processes need one each: take -N 4, or --cpu\n"
    assert launch("-N", 5, "train.py") == (1, "", few)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    few = "there is 1 GPU here, and 2 processes need one each: take -N 1, or --cpu\n"
    assert launch("-N", 2, "--strat", "deepspeed-2", "train.py") == (1, "", few)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch("train.py") == none


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("", 0),
        ("0,1", 2),
        ("3", 1),
        ("-1", 0),
        ("0,-1,1", 1),
        ("1,4,2", 1),
        ("GPU-5a1,GPU-7b2", 2),
        ("x", 0),
    ],
)
def test_gpus_are_counted_as_cuda_shows_them(launch, there_are, monkeypatch, visible, count):
    there_are(4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.gpus() == count
    if count > 1:
        _, _, errors, (_, command, _) = launch("train.py")
        assert errors == f"accmt launch: ddp, {count} processes\n"
        assert json.loads(command[5])["num_processes"] == count


def test_deepspeed_that_is_not_installed(launch, without_deepspeed):
    text = "deepspeed-2 needs DeepSpeed, which is not installed: pip install deepspeed\n"
    assert launch("--cpu", "--strat", "deepspeed-2", "train.py") == (1, "", text)
    assert launch("--cpu", "--strat", "deepspeed-2", "--print", "train.py")[0] == 0


FILES = [
    (
        "hps: {epochs: 3}",
        "distributed_type: is missing or no text. Is this a file of `accelerate config`? There it is MULTI_GPU, FSDP "
        "or the like",
    ),
    (
        "distributed_type: MULTI_GPU\nnum_processes: two",
        "num_processes: must be a whole number from 1, not 'two' (str)",
    ),
    (
        "distributed_type: MULTI_GPU\nmachine_rank: -1",
        "machine_rank: must be a whole number from 0, not -1 (int)",
    ),
]


@pytest.mark.parametrize(("text", "problem"), FILES)
def test_files_that_cannot_be_used(launch, tmp_path, text, problem):
    (tmp_path / "file.yaml").write_text(text)
    assert launch("--config", "file.yaml", "train.py") == (1, "", f"1 mistake in file.yaml:\n  {problem}\n")


def test_a_file_that_is_not_there(launch, tmp_path):
    text = f"1 mistake in none.yaml:\n  there is no such file, seen from {tmp_path}\n"
    assert launch("--config", "none.yaml", "train.py") == (1, "", text)


FILES_AND_CALLS = [
    ("FSDP", ["--cpu"], 2, "file.yaml needs GPUs: on CPUs, Accelerate would train as ddp does. Take --strat ddp"),
    ("XLA", ["--cpu"], 2, "file.yaml is XLA, which does not go with --cpu"),
    ("MULTI_CPU\nmixed_precision: fp16", [], 2, "file.yaml: fp16 needs a GPU: on CPUs take bf16"),
    (
        "MULTI_GPU\nnum_processes: 3\nnum_machines: 2\nmachine_rank: 1\nmain_process_ip: a",
        [],
        2,
        "num_processes is 3, which 2 machines cannot share evenly: give -N",
    ),
    (
        "MULTI_GPU\nnum_processes: 4\nnum_machines: 2\nmain_process_ip: a",
        [],
        2,
        "--nodes 2 needs --node-rank: which of them this machine is, 0 to 1",
    ),
]


@pytest.mark.parametrize(("text", "arguments", "status", "problem"), FILES_AND_CALLS)
def test_files_that_do_not_go_with_the_call(launch, tmp_path, text, arguments, status, problem):
    (tmp_path / "file.yaml").write_text(f"distributed_type: {text}\n")
    got = launch("--config", "file.yaml", *arguments, "train.py")
    assert got == (status, "", f"accmt launch: error: {problem}\n")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_of_a_strategy_is_what_accelerate_makes_of_it(launch, tmp_path, monkeypatch, name):
    """Its launcher reads the configuration, and gives the processes the environment that is shown."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    status, output, errors = launch("-N", 2, "--strat", name, "--print", "train.py", "--lr", "a b")
    assert (status, errors) == (0, "")
    configuration, exports = configuration_of(output), exports_of(output)
    assert output.endswith(f"# the command\naccelerate launch --config_file accmt-{name}.yaml train.py --lr 'a b'\n")
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(configuration))
    given = launch_command_parser().parse_args(["--config_file", "file.yaml", "train.py"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given, read, _ = _validate_launch_command(given)
    given.deepspeed_fields_from_accelerate_config = ""
    assert (read.num_processes, read.num_machines, read.distributed_type.value) == (
        2,
        1,
        configuration["distributed_type"],
    )
    kind = name.partition("-")[0]
    assert (given.use_deepspeed, given.use_fsdp, given.multi_gpu) == tuple(
        kind == each for each in ("deepspeed", "fsdp2", "ddp")
    )
    made = prepare_deepspeed_cmd_env(given)[1] if given.use_deepspeed else prepare_multi_gpu_env(given)
    assert exports.items() <= made.items()
    end = name.rpartition("-")[2]
    assert exports["ACCELERATE_MIXED_PRECISION"] == {"bf16": "bf16", "fp16": "fp16"}.get(end, "no")


def test_what_is_shown_for_cpus(launch, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    output = launch("--cpu", "-N", 2, "--print", "train.py")[1]
    assert exports_of(output) == {"ACCELERATE_MIXED_PRECISION": "no", **CPUS, "OMP_NUM_THREADS": "4"}
    assert configuration_of(output) == {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "mixed_precision": "no",
        "use_cpu": True,
        "num_machines": 1,
        "num_processes": 2,
        "machine_rank": 0,
        "main_process_port": 0,
    }
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert exports_of(launch("--cpu", "-N", 2, "--print", "train.py")[1]) == {
        "ACCELERATE_MIXED_PRECISION": "no",
        **CPUS,
    }
    exports = exports_of(launch("--cpu", "-N", 2, "--strat", "deepspeed-3-bf16", "--print", "train.py")[1])
    assert exports["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert exports["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    hidden = {"ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    assert hidden.items() <= exports.items()
    one = launch("--cpu", "--print", "-m", "package.train", "-m")[1]
    assert configuration_of(one)["distributed_type"] == "NO"
    assert one.endswith("accelerate launch --config_file accmt-ddp.yaml --module package.train -m\n")


def test_the_environment_may_say_that_it_is_for_cpus(launch, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert exports_of(launch("--print", "train.py")[1]).items() >= CPUS.items()
    assert launch("train.py")[2] == "accmt launch: ddp, 1 process on CPUs\n"


@pytest.mark.parametrize(
    ("master", "address"),
    [("node-a", ("node-a", 29500)), ("10.0.0.1:3000", ("10.0.0.1", 3000)), ("[fe80::1]:3000", ("fe80::1", 3000))],
)
def test_several_machines(launch, there_are, master, address):
    there_are(4)
    arguments = ["--nodes", 2, "--node-rank", 1, "--master", master, "train.py"]
    _, _, errors, (_, command, _) = launch(*arguments)
    assert errors == "accmt launch: ddp, 4 processes, on each of 2 machines\n"
    configuration = json.loads(command[5])
    assert (configuration["main_process_ip"], configuration["main_process_port"]) == address
    names = ("num_machines", "num_processes", "machine_rank", "same_network", "rdzv_backend")
    assert [configuration[name] for name in names] == [2, 8, 1, True, "static"]


def test_a_file_with_what_the_call_says_instead(launch, tmp_path, there_are):
    text = "distributed_type: FSDP\nnum_processes: -1\nmain_process_port: 4000\nfsdp_config: {fsdp_version: 2}\n"
    (tmp_path / "file.yaml").write_text(text)
    there_are(4)
    output = launch("--config", "file.yaml", "--print", "train.py")[1]
    configuration = configuration_of(output)
    assert configuration["num_processes"] == 4
    assert configuration["main_process_port"] == 4000
    assert configuration["fsdp_config"] == {"fsdp_version": 2}
    assert "--config_file accmt-file.yaml train.py" in output
    (tmp_path / "accmt-file.yaml").write_text(yaml.safe_dump(configuration))
    again = launch("--config", "accmt-file.yaml", "--print", "train.py")[1]
    assert configuration_of(again) == configuration
    arguments = ["-N", 1, "--nodes", 2, "--node-rank", 1, "--master", "a:5", "--print", "train.py"]
    changed = configuration_of(launch("--config", "file.yaml", *arguments)[1])
    assert [changed[name] for name in ("num_processes", "machine_rank", "main_process_ip")] == [2, 1, "a"]
    few = "there are 4 GPUs here, and 5 processes need one each: take -N 4, or --cpu\n"
    assert launch("--config", "file.yaml", "-N", 5, "train.py") == (1, "", few)


def test_a_file_for_other_accelerators_says_how_many_there_are(launch, tmp_path):
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    assert launch("--config", "file.yaml", "train.py")[2] == "accmt launch: file.yaml, 2 processes\n"
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_XPU\nnum_processes: 2\n")
    _, _, errors, (_, command, _) = launch("--config", "file.yaml", "-N", 3, "train.py")
    assert errors == "accmt launch: file.yaml, 3 processes\n"
    assert json.loads(command[5])["distributed_type"] == "MULTI_XPU"


def test_a_file_for_one_process_leaves_it_to_accelerate_what_the_script_gets(tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(launcher.Signals, "take", lambda signals: None)
    monkeypatch.setattr(os, "execvpe", lambda *command: became.append(command))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    configuration = {
        "distributed_type": "NO",
        "use_cpu": True,
        "mixed_precision": "bf16",
        "num_processes": 1,
        "dynamo_config": {"dynamo_backend": "INDUCTOR"},
    }
    assert launcher.main(["file.yaml", json.dumps(configuration), "-m", "package.train", "--config", "x"]) == 0
    [(program, command, environment)] = became
    assert program == sys.executable
    assert command == [sys.executable, "-m", "package.train", "--config", "x"]
    assert environment["ACCELERATE_DYNAMO_BACKEND"] == "INDUCTOR"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert environment["PYTHONUNBUFFERED"] == "1"


def test_what_only_accelerate_knows_of_a_file_is_said_without_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr(launcher.Signals, "take", lambda signals: None)
    configuration = {"distributed_type": "MULTI_GPU", "num_processes": 2, "num_proceses": 2}
    assert launcher.main(["file.yaml", json.dumps(configuration), "train.py"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(
        "accmt launch: Accelerate cannot launch file.yaml: The config file at file.yaml had unknown keys"
    )
    assert "num_proceses" in errors


def test_nothing_heavy_is_loaded():
    code = (
        "import sys; from accmt.cli.main import main; main(['strats']);"
        "main(['launch', '--cpu', '-N', '2', '--strat', 'deepspeed-2', '--print', 'train.py']);"
        "assert not {'torch', 'accelerate', 'numpy', 'deepspeed'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_strats(capsys, there_are, monkeypatch):
    monkeypatch.setattr(hardware, "version", lambda package: "0.19.8")
    assert main(["strats"]) == 0
    output = capsys.readouterr().out
    rows = [re.split(r"  +", line) for line in output.splitlines()[:7]]
    assert rows[0] == ["strategy", "what it is", "take it when", "needs"]
    assert [row[0] for row in rows[1:]] == [strategy.name for strategy in STRATEGIES]
    assert [row[3] for row in rows[1:4]] == [
        "GPUs, or --cpu",
        "GPUs",
        "GPUs, or --cpu; DeepSpeed (0.19.8 is installed)",
    ]
    assert output.endswith("This machine has no NVIDIA GPU.\n")
    there_are(2)
    main(["strats"])
    assert capsys.readouterr().out.endswith("This machine has 2 NVIDIA GPUs.\n")


def test_strats_without_deepspeed(capsys, without_deepspeed):
    main(["strats"])
    assert capsys.readouterr().out.count("DeepSpeed (not installed: pip install deepspeed)") == 4


def test_the_page_shows_what_is_printed(launch, monkeypatch):
    call, shown = re.search(r"```bash\naccmt (launch .*--print.*)\n```\n\n```bash\n((?:.|\n)*?)```", PAGE).groups()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert launch(*shlex.split(call)[1:])[1] == shown
