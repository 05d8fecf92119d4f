"""`accmt launch` and `accmt strats` before anything starts: what is refused, what is shown, what would be started."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from unittest.mock import patch

import pynvml
import pytest

from accmt.cli.launch import hardware, launcher
from accmt.cli.launch.strats import PRECISIONS, strategies
from accmt.cli.main import main

PAGE = (Path(__file__).parent.parent.parent / "docs" / "reference" / "command-line.md").read_text()
STRATEGIES = {strategy.name: strategy for strategy in strategies()}
NAMES = [name + end for name in STRATEGIES for end in ("", *PRECISIONS)]
CPUS = {"ACCELERATE_USE_CPU": "true"}


@pytest.fixture(autouse=True)
def _nobody_says_how(monkeypatch, tmp_path):
    """A folder with a script; nothing in the environment says how to train."""
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "DS_ACCELERATOR", "PYTHONUNBUFFERED"):
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
    """Arguments -> status, stdout, stderr without the usage, and the command that this process would become.

    With `--print` this process becomes the one that shows the command, which is done at once.
    """
    became = []
    monkeypatch.setattr(os, "execve", lambda *command: became.append(command))
    monkeypatch.setattr(launcher.ForwardedSignals, "take", lambda signals: None)

    def run(*arguments):
        became.clear()
        try:
            status = main(["launch", *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        if "--print" in arguments and became:
            _, command, environment = became.pop()
            with patch.dict(os.environ, environment, clear=True):
                status = launcher.main(command[command.index("accmt.cli.launch.launcher") + 1 :])
        output, errors = capsys.readouterr()
        return status, output, re.sub(r"\Ausage:(.|\n)*?\n(?=accmt)", "", errors), *became

    return run


def configuration_in(command):
    """The configuration of Accelerate in a command that this process would become."""
    return json.loads(command[command.index("accmt.cli.launch.launcher") + 1])[1]


def exports_of(text):
    lines = [line.removeprefix("export ") for line in text.splitlines() if line.startswith("export ")]
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


ALL = (
    "There are ddp, deepspeed-0, deepspeed-1, deepspeed-2, deepspeed-2-offload, deepspeed-3, deepspeed-3-offload, "
    "fsdp2, fsdp2-offload; each may end with -bf16, -fp16, -fp32"
)
WRONG_CALLS = [
    ("--strat dpp train.py", f"--strat: there is no strategy 'dpp', did you mean 'ddp'? {ALL}"),
    ("--strat fsdp2-bf32 train.py", f"--strat: there is no strategy 'fsdp2-bf32', did you mean 'fsdp2-fp32'? {ALL}"),
    ("--strat horovod train.py", f"--strat: there is no strategy 'horovod'. {ALL}"),
    ("--strat ddp --config a.yaml train.py", "--strat and --config both say how to train: give one of them"),
    (
        "--cpu --strat fsdp2-bf16 train.py",
        "fsdp2-bf16 needs GPUs: on CPUs, Accelerate would train as ddp does. Use --strat ddp",
    ),
    ("--cpu --strat ddp-fp16 train.py", "ddp-fp16: fp16 needs a GPU: on CPUs use bf16"),
    ("--cpu --strat deepspeed-1-fp16 train.py", "deepspeed-1-fp16: fp16 needs a GPU: on CPUs use bf16"),
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
    ("--print train.py", "no NVIDIA GPU was found here to count: give -N, --gpus or --cpu"),
    ("--gpus 0,x train.py", "argument --gpus: '0,x' is not a list of GPU numbers from 0, such as 0,1"),
    ("--gpus 0, train.py", "argument --gpus: '0,' is not a list of GPU numbers from 0, such as 0,1"),
    ("--gpus=-1 train.py", "argument --gpus: '-1' is not a list of GPU numbers from 0, such as 0,1"),
    ("--gpus 1,0,1 train.py", "argument --gpus: '1,0,1' names GPU 1 more than once: each GPU runs one process"),
    ("--gpus 0,1 --cpu train.py", "--gpus cannot be combined with --cpu, which selects CPUs: use one of them"),
    (
        "--gpus 0,1 -N 3 train.py",
        "-N is 3, and --gpus names 2: each GPU runs one process. Leave out -N, or name as many",
    ),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG_CALLS, ids=lambda value: value)
def test_calls_that_are_refused(launch, arguments, text):
    assert launch(*arguments.split()) == (2, "", f"accmt launch: error: {text}\n")


def test_options_behind_the_script_are_its_own_and_unknown_ones_before_it_are_refused(launch):
    assert launch("--devices", "train.py")[:3] == (2, "", "accmt launch: error: unrecognized arguments: --devices\n")
    assert launch("--cpu", "train.py", "--gpus", "--cpu")[3][1][-2:] == ["--gpus", "--cpu"]


def test_scripts_that_are_not_there(launch, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = {
        ("trian.py",): f"there is no script trian.py (the current folder is {tmp_path}), did you mean 'train.py'?",
        ("other.sh",): f"there is no script other.sh (the current folder is {tmp_path}).",
        ("empty",): "empty is a directory without a __main__.py",
        ("-m", "projekt.train"): f"there is no module 'projekt' (the current folder is {tmp_path})",
    }
    for arguments, text in cases.items():
        assert launch("--cpu", *arguments) == (1, "", f"{text}\n")
    (tmp_path / "empty" / "__main__.py").touch()
    for arguments in (("empty",), ("-m", "empty"), ("-m", "train"), ("-m", "json.tool")):
        assert len(launch("--cpu", *arguments)) == 4


def test_machines_without_enough_gpus(launch, there_are, monkeypatch):
    none = (1, "", "no NVIDIA GPU was found here: use --cpu to train on CPUs\n")
    assert launch("train.py") == none
    assert launch("-N", 2, "--strat", "fsdp2", "train.py") == none
    there_are(4)
    few = "there are 4 GPUs here, and 5 processes need one each: use -N 4, or --cpu\n"
    assert launch("-N", 5, "train.py") == (1, "", few)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    few = "there is 1 GPU here, and 2 processes need one each: use -N 1, or --cpu\n"
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
    if count == 0:
        assert launch("train.py")[0] == 1
        return
    _, _, errors, (_, command, _) = launch("train.py")
    assert errors == f"accmt launch: ddp, {count} process{'es' if count > 1 else ''}\n"
    if count > 1:
        assert configuration_in(command)["num_processes"] == count


@pytest.mark.parametrize(
    ("visible", "gpus", "chosen"),
    [(None, "1,3", "1,3"), (None, "2", "2"), ("2,3", "1,0", "3,2"), ("GPU-5a1,GPU-7b2,0", "1,2", "GPU-7b2,0")],
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_gpus_that_are_chosen(launch, there_are, monkeypatch, visible, gpus, chosen, strategy):
    there_are(4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    count = len(gpus.split(","))
    _, _, errors, *_ = launch("--gpus", gpus, "-N", count, "--strat", strategy, "train.py")
    assert errors == f"accmt launch: {strategy}, {count} process{'es' if count > 1 else ''}\n"
    status, output, errors = launch("--gpus", gpus, "--strat", strategy, "--print", "train.py")
    assert (status, errors) == (0, "")
    assert exports_of(output)["CUDA_VISIBLE_DEVICES"] == chosen
    if count > 1 or strategy == "fsdp2":
        assert f" --nproc-per-node={count} train.py\n" in output


def test_gpus_that_cannot_be_chosen(launch, there_are, tmp_path, monkeypatch):
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_CPU\n")
    text = "accmt launch: error: --gpus cannot be combined with file.yaml, which selects CPUs: use one of them\n"
    assert launch("--gpus", "0", "--config", "file.yaml", "train.py") == (2, "", text)
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    none = (1, "", "no NVIDIA GPU was found here: use --cpu to train on CPUs\n")
    assert launch("--gpus", "0", "--config", "file.yaml", "train.py") == none
    there_are(4)
    text = "there are 4 GPUs here, counted from 0: --gpus cannot name 4\n"
    assert launch("--gpus", "1,4", "train.py") == (1, "", text)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    text = "there is 1 GPU here, counted from 0: --gpus cannot name 2\n"
    assert launch("--gpus", "2", "train.py") == (1, "", text)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    text = (
        "accmt launch: error: --gpus cannot be combined with ACCELERATE_USE_CPU, which selects CPUs: use one of them\n"
    )
    assert launch("--gpus", "0", "train.py") == (2, "", text)


def test_gpus_and_a_file_that_names_others(launch, there_are, tmp_path):
    there_are(4)
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\ngpu_ids: 0,1\n")
    assert exports_of(launch("--config", "file.yaml", "--print", "train.py")[1])["CUDA_VISIBLE_DEVICES"] == "0,1"
    for gpus in ("2,3", "3"):
        output = launch("--config", "file.yaml", "--gpus", gpus, "--print", "train.py")[1]
        assert exports_of(output)["CUDA_VISIBLE_DEVICES"] == gpus


def test_deepspeed_that_is_not_installed(launch, without_deepspeed):
    text = "deepspeed-2 needs DeepSpeed, which is not installed: pip install deepspeed\n"
    assert launch("--cpu", "--strat", "deepspeed-2", "train.py") == (1, "", text)
    assert launch("--cpu", "--strat", "deepspeed-2", "--print", "train.py")[0] == 0


NOT_BY_TORCHRUN = "which torchrun cannot start: use `accelerate launch --config_file`"
FILES = [
    (
        "hps: {epochs: 3}",
        "distributed_type: is missing or not a string. Is this a file of `accelerate config`? There it is MULTI_GPU, "
        "FSDP or the like",
    ),
    (
        "distributed_type: MULTI_GPU\nnum_processes: two",
        "num_processes: must be a whole number from 1, not 'two' (str)",
    ),
    (
        "distributed_type: MULTI_GPU\nmachine_rank: -1",
        "machine_rank: must be a whole number from 0, not -1 (int)",
    ),
    ("distributed_type: XLA", f"distributed_type: is XLA, {NOT_BY_TORCHRUN}"),
    (
        "distributed_type: 'NO'\ncompute_environment: AMAZON_SAGEMAKER",
        f"compute_environment: is AMAZON_SAGEMAKER, {NOT_BY_TORCHRUN}",
    ),
    (
        "distributed_type: DEEPSPEED\nnum_machines: 2\ndeepspeed_config: {deepspeed_multinode_launcher: pdsh}",
        "deepspeed_config.deepspeed_multinode_launcher: is pdsh, which starts all machines from one. Set it to "
        "standard, and call accmt launch on each",
    ),
]


@pytest.mark.parametrize(("text", "problem"), FILES)
def test_files_that_cannot_be_used(launch, tmp_path, text, problem):
    (tmp_path / "file.yaml").write_text(text)
    assert launch("--config", "file.yaml", "train.py") == (1, "", f"1 mistake in file.yaml:\n  {problem}\n")


def test_a_file_that_is_not_there(launch, tmp_path):
    text = f"1 mistake in none.yaml:\n  no such file (the current folder is {tmp_path})\n"
    assert launch("--config", "none.yaml", "train.py") == (1, "", text)


FILES_AND_CALLS = [
    ("FSDP", ["--cpu"], 2, "file.yaml needs GPUs: on CPUs, Accelerate would train as ddp does. Use --strat ddp"),
    ("MULTI_XPU", ["--cpu"], 2, "file.yaml is MULTI_XPU, which cannot be combined with --cpu"),
    ("MULTI_CPU\nmixed_precision: fp16", [], 2, "file.yaml: fp16 needs a GPU: on CPUs use bf16"),
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
def test_what_is_shown_of_a_strategy_is_what_accelerate_makes_of_it(launch, monkeypatch, name):
    """Its launcher reads the file of the strategy, and gives the processes the environment that is shown."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    status, output, errors = launch("-N", 2, "--strat", name, "--print", "train.py", "--lr", "a b")
    assert (status, errors) == (0, "")
    assert output.endswith("\ntorchrun --standalone --local-addr=127.0.0.1 --nproc-per-node=2 train.py --lr 'a b'\n")
    strategy, end = max((base, name.removeprefix(base)) for base in STRATEGIES if name.startswith(base))
    precision = PRECISIONS.get(end, "no")
    file = Path(launcher.__file__).with_name("strategies") / f"{strategy}.yaml"
    call = ["--config_file", str(file), "--num_processes", "2", "--mixed_precision", precision]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given, read, _ = _validate_launch_command(launch_command_parser().parse_args([*call, "train.py"]))
    given.deepspeed_fields_from_accelerate_config = ",".join([*read.deepspeed_config, "mixed_precision"])
    kind = name.partition("-")[0]
    assert (given.use_deepspeed, given.use_fsdp, given.multi_gpu) == tuple(
        kind == each for each in ("deepspeed", "fsdp2", "ddp")
    )
    made = prepare_deepspeed_cmd_env(given)[1] if given.use_deepspeed else prepare_multi_gpu_env(given)
    added = {key: value for key, value in made.items() if os.environ.get(key) != value}
    assert exports_of(output) == {**added, "OMP_NUM_THREADS": "1"}
    assert added["ACCELERATE_MIXED_PRECISION"] == precision


@pytest.mark.parametrize(("name", "offloads"), [("fsdp2", False), ("fsdp2-offload", True)])
def test_what_a_process_gets_of_fsdp(launch, name, offloads):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    with patch.dict(os.environ, exports_of(launch("-N", 2, "--strat", name, "--print", "train.py")[1])):
        plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, False)
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) is offloads


@pytest.mark.parametrize(
    ("name", "stage", "optimizer", "model"),
    [
        ("deepspeed-0", 0, "none", "none"),
        ("deepspeed-1", 1, "none", "none"),
        ("deepspeed-2", 2, "none", "none"),
        ("deepspeed-2-offload", 2, "cpu", "none"),
        ("deepspeed-3", 3, "none", "none"),
        ("deepspeed-3-offload", 3, "cpu", "cpu"),
    ],
)
def test_what_a_process_gets_of_deepspeed(launch, name, stage, optimizer, model):
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin

    with patch.dict(os.environ, exports_of(launch("-N", 2, "--strat", name, "--print", "train.py")[1])):
        zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    assert zero["stage"] == stage
    assert (zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == (optimizer, model)
    assert zero["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)


def test_what_is_shown_for_cpus(launch, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    output = launch("--cpu", "-N", 2, "--print", "train.py")[1]
    exports = exports_of(output)
    assert exports.items() >= {"ACCELERATE_MIXED_PRECISION": "no", **CPUS, "OMP_NUM_THREADS": "4"}.items()
    assert output.endswith("\ntorchrun --standalone --local-addr=127.0.0.1 --nproc-per-node=2 train.py\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    exports = exports_of(launch("--cpu", "-N", 2, "--print", "train.py")[1])
    assert "OMP_NUM_THREADS" not in exports  # as it is
    exports = exports_of(launch("--cpu", "-N", 2, "--strat", "deepspeed-3-bf16", "--print", "train.py")[1])
    assert exports["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    hidden = {"ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    assert hidden.items() <= exports.items()
    one = launch("--cpu", "--print", "-m", "package.train", "-m")[1]
    assert one == (
        "export ACCELERATE_USE_CPU=true\nexport ACCELERATE_MIXED_PRECISION=no\npython -u -m package.train -m\n"
    )


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
    assert configuration_in(command)["num_processes"] == 8
    place = f"--nnodes=2 --node-rank=1 --master-addr={address[0]} --master-port={address[1]} --nproc-per-node=4"
    assert launch("--print", *arguments)[1].endswith(f"\n{shlex.join(['torchrun', *place.split()])} train.py\n")


def test_a_file_with_what_the_call_says_instead(launch, tmp_path, there_are):
    text = "distributed_type: FSDP\nnum_processes: -1\nmain_process_port: 4000\nfsdp_config: {fsdp_version: 2}\n"
    (tmp_path / "file.yaml").write_text(text)
    there_are(4)
    output = launch("--config", "file.yaml", "--print", "train.py")[1]
    assert exports_of(output)["FSDP_VERSION"] == "2"
    assert output.endswith("\ntorchrun --master-port=4000 --local-addr=127.0.0.1 --nproc-per-node=4 train.py\n")
    arguments = ["-N", 1, "--nodes", 2, "--node-rank", 1, "--master", "a:5", "--print", "train.py"]
    place = "--nnodes=2 --node-rank=1 --master-addr=a --master-port=5 --nproc-per-node=1"
    assert launch("--config", "file.yaml", *arguments)[1].endswith(f"\ntorchrun {place} train.py\n")
    few = "there are 4 GPUs here, and 5 processes need one each: use -N 4, or --cpu\n"
    assert launch("--config", "file.yaml", "-N", 5, "train.py") == (1, "", few)


def test_a_port_of_a_file_that_is_taken_is_not_waited_for(launch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "file.yaml").write_text(f"distributed_type: MULTI_GPU\nmain_process_port: {port}\n")
        with pytest.warns(UserWarning, match=f"Port `{port}` is already in use"):
            output = launch("--config", "file.yaml", "-N", 2, "--print", "train.py")[1]
    assert "\ntorchrun --standalone " in output


def test_a_file_for_other_accelerators_says_how_many_there_are(launch, tmp_path):
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    assert launch("--config", "file.yaml", "train.py")[2] == "accmt launch: file.yaml, 2 processes\n"
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_XPU\nnum_processes: 2\n")
    _, _, errors, (_, command, _) = launch("--config", "file.yaml", "-N", 3, "train.py")
    assert errors == "accmt launch: file.yaml, 3 processes\n"
    assert configuration_in(command)["distributed_type"] == "MULTI_XPU"


def test_a_file_for_one_process_leaves_it_to_accelerate_what_the_script_gets(launch, tmp_path):
    text = "distributed_type: 'NO'\nmixed_precision: bf16\ndynamo_config: {dynamo_backend: INDUCTOR}\n"
    (tmp_path / "file.yaml").write_text(text)
    output = launch("--config", "file.yaml", "--cpu", "--print", "-m", "package.train", "--config", "x")[1]
    exports = exports_of(output)
    assert exports["ACCELERATE_DYNAMO_BACKEND"] == "INDUCTOR"
    assert exports["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert exports["ACCELERATE_USE_CPU"].lower() == "true"
    assert exports["PYTHONUNBUFFERED"] == "1"
    assert output.endswith("\npython -m package.train --config x\n")


def test_what_only_accelerate_knows_of_a_file_is_said_without_a_traceback(launch, tmp_path):
    (tmp_path / "file.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_proceses: 2\n")
    status, output, errors = launch("--config", "file.yaml", "--print", "train.py")
    assert (status, output) == (1, "")
    assert errors.startswith(
        "accmt launch: Accelerate cannot launch file.yaml: The config file at file.yaml had unknown keys"
    )
    assert "num_proceses" in errors


def test_nothing_heavy_is_loaded():
    """Before this process becomes another one, or shows what the script itself would become."""
    code = (
        "import os, sys; from accmt.cli.main import main; main(['strats']); os.execve = lambda *_: None;"
        "main(['launch', '--cpu', '-N', '2', '--strat', 'deepspeed-2', '--print', 'train.py']);"
        "assert not {'torch', 'accelerate', 'numpy', 'deepspeed'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_strats(capsys, there_are, monkeypatch):
    monkeypatch.setattr(hardware, "version", lambda package: "0.19.8")
    assert main(["strats"]) == 0
    output = capsys.readouterr().out
    rows = [re.split(r"  +", line) for line in output.splitlines()[: len(STRATEGIES) + 1]]
    assert rows[0] == ["strategy", "what it is", "use it when", "needs"]
    needs = {row[0]: row[3] for row in rows[1:]}
    assert needs.keys() == STRATEGIES.keys()
    assert needs["ddp"] == "GPUs, or --cpu"
    assert needs["fsdp2-offload"] == "GPUs"
    assert needs["deepspeed-3"] == "GPUs, or --cpu; DeepSpeed (0.19.8 is installed)"
    for name, what, when, _ in rows[1:]:
        assert f"| `{name}` | {what} | {when} |" in PAGE
    assert output.endswith("This machine has no NVIDIA GPU.\n")
    there_are(2)
    main(["strats"])
    assert capsys.readouterr().out.endswith("This machine has 2 NVIDIA GPUs.\n")


def test_strats_without_deepspeed(capsys, without_deepspeed):
    main(["strats"])
    assert capsys.readouterr().out.count("DeepSpeed (not installed: pip install deepspeed)") == 6


def test_the_page_shows_what_is_printed(launch, monkeypatch):
    call, shown = re.search(r"```bash\naccmt (launch .*--print.*)\n```\n\n```bash\n((?:.|\n)*?)```", PAGE).groups()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert launch(*shlex.split(call)[1:])[1] == shown
