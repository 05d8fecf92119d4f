"""Private names of other libraries are used in accmt/_compat.py alone, and each does what is relied on.

A failure here after an update of a library says which name has gone, or has changed.
"""

import argparse
import ast
import re
from abc import ABCMeta
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch import distributed as dist
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

import accmt
from accmt import _compat as compat
from accmt.distributed.process_group import join_processes

PACKAGE = Path(accmt.__file__).parent
TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "_compat.py"
}
ALLOWED = {
    "_exit": "documented: https://docs.python.org/3/library/os.html#os._exit",
    "_replace": "documented, of named tuples",
    "_render_traceback_": "documented, of IPython: it calls it to show an error",
    "_fields": "documented, of named tuples",
    "_runtime": "the end of the names of values that transformers reports",
    "_per_second": "the end of the names of values that transformers reports",
    "_token_id": "the end of the names of public attributes of tokenizers",
}
LIBRARY_OBJECTS = (nn.Module(), torch.zeros(1), nn.Parameter(torch.zeros(1)), DataLoader([0]), dist.HashStore())


def is_private(name):
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None


def defined(tree):
    """Names of functions, classes, variables and attributes of `self` that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


OURS = {name for tree in TREES.values() for name in defined(tree)}
THEIRS = {name for thing in LIBRARY_OBJECTS for name in dir(thing) if is_private(name)}


def used(tree):
    """Yield line and name of each private name of another library."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            of_self = ast.unparse(node.value) in ("self", "cls", "super()")
            if node.attr not in OURS or (node.attr in THEIRS and not of_self):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in ("accmt", "__future__"):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".") if re.fullmatch(r"[\w.]+", node.value) else ()
            yield from ((node.lineno, part) for part in parts if is_private(part) and part not in OURS)


def test_private_names_of_other_libraries_are_used_in_one_file():
    found = {
        f"{path}:{line} {name}" for path, tree in TREES.items() for line, name in used(tree) if name not in ALLOWED
    }
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "thing._anything_private",
        "getattr(thing, '_anything_private', None)",
        "vars(thing).update(_buffers={})\nthing._buffers",
        "self._buffers = 1\nlayer._buffers",
        "from torch._dynamo import eval_frame",
        "from torch import _dynamo",
        "import torch._dynamo",
        "sys.modules.get('torch._dynamo.eval_frame')",
    ],
)
def test_each_way_of_use_is_found(code):
    assert [name for _, name in used(ast.parse(code))]


@pytest.fixture
def group():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=77))
    yield
    dist.destroy_process_group()


def test_argparse():
    parser = compat.MessageParser(prog="it")
    written = []
    parser.write = lambda message, stream: written.append(message)
    parser.print_help()
    with pytest.raises(SystemExit):
        parser.error("wrong")
    assert written[0].startswith("usage: it")
    assert written[-1] == "it: error: wrong\n"
    parser.add_mutually_exclusive_group().add_argument("--one", "-o")
    assert parser.option_names() == ["-h", "--help", "--one", "-o"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_models():
    assert not compat.is_compiled(nn.Linear(1, 1))
    compiled = torch.compile(nn.Linear(1, 1))
    assert compat.is_compiled(compiled)
    assert set(compiled.state_dict()) == {f"{compat.COMPILED}.weight", f"{compat.COMPILED}.bias"}


def test_buffers_of_a_layer():
    layer = nn.Module()
    layer.register_buffer("saved", torch.ones(1))
    layer.register_buffer("unsaved", torch.ones(1), persistent=False)
    layer.register_buffer("none", None)
    assert compat.unsaved_buffers(layer) == {"unsaved"}
    buffers = compat.own_buffers(layer)
    assert list(buffers) == ["saved", "unsaved", "none"]
    buffers["none"] = torch.ones(3)
    assert layer.none.shape == (3,)


def test_sizes_of_files():
    assert [compat.bytes_of(size) for size in ("10GB", "2KB", 7)] == [10_000_000_000, 2000, 7]


def test_what_abc_keeps_in_a_class():
    kept = [name for name in vars(ABCMeta("Made", (), {})) if not name.startswith("__")]
    assert kept
    assert all(name.startswith(compat.ABC_STATE) for name in kept)


def test_versions_of_tensors():
    tensor = torch.ones(2)
    before = compat.version_of(tensor)
    assert compat.version_of(tensor) == before
    tensor.add_(1)
    assert compat.version_of(tensor) == before + 1


@pytest.mark.parametrize("method", ["register_hook", "register_post_accumulate_grad_hook"])
def test_watched_parameters(method):
    parameter = nn.Parameter(torch.ones(1))
    assert not compat.is_watched(parameter)
    handle = getattr(parameter, method)(lambda gradient: None)
    assert compat.is_watched(parameter)
    handle.remove()
    assert not compat.is_watched(parameter)


def test_offsets_of_shards(group):
    """That of a second process is proved by a training: tests/distributed/test_sharded.py."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    tensor = distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
    assert compat.offset_of(tensor) == [0, 0]


def test_attributes_of_sharded_layers(group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layer = nn.Linear(2, 2)
    before = set(vars(layer))
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    layer(torch.ones(1, 2)).sum().backward()
    added = set(vars(layer)) - before
    assert any(name.startswith(compat.SET_ON_SHARDED_LAYERS) for name in added), added


def test_schedulers():
    optimizer = torch.optim.SGD([torch.ones(1)], lr=1.0)
    inner = [ConstantLR(optimizer), ConstantLR(optimizer)]
    assert compat.schedulers_in(inner[0]) == []
    assert compat.schedulers_in(ChainedScheduler(inner)) == inner
    sequence = SequentialLR(optimizer, inner, milestones=[3])
    assert compat.schedulers_in(sequence) == inner
    assert len(getattr(sequence, compat.LAST_RATES)) == len(optimizer.param_groups)


def test_fused_kernels():
    names = ["Adagrad", "Adam", "AdamW", "SGD", "RMSprop"]
    assert [name for name in names if compat.has_fused_kernel(name, "cpu")] == names[:4]
    assert not compat.has_fused_kernel("Adam", "meta")


def test_clipping_at_once():
    gradients, parameter = [torch.full((3,), 2.0), torch.full((2,), 2.0)], nn.Parameter(torch.zeros(5))
    parameter.grad = torch.cat(gradients)
    assert compat.clip_together(gradients, 1.0) == nn.utils.clip_grad_norm_([parameter], 1.0)
    assert torch.equal(torch.cat(gradients), parameter.grad)


@pytest.mark.parametrize("name", ["Adagrad", "Adam", "AdamW", "SGD"])
def test_optimizers_that_scale_themselves(name):
    """They are marked at construction only: not where a group is fused later."""
    for is_fused in (True, None):
        optimizer = getattr(torch.optim, name)([nn.Parameter(torch.ones(1))], lr=0.1, fused=is_fused)
        assert vars(optimizer).get(compat.SCALES_ITSELF, False) is bool(is_fused)
        optimizer.param_groups[0]["fused"] = True
        optimizer.step()
        assert vars(optimizer).get(compat.SCALES_ITSELF, False) is bool(is_fused)


def test_loaders_that_have_begun():
    loader = DataLoader(TensorDataset(torch.ones(4)), num_workers=1, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    assert vars(loader)["_iterator"] is batches
    workers = list(batches._workers)
    assert all(worker.is_alive() for worker in workers)
    compat.end_loader_workers(loader, batches)
    assert not any(worker.is_alive() for worker in workers)
    vars(loader).update({name: value for name, value in compat.BEGUN_LOADER.items() if name in vars(loader)})
    assert iter(loader) is not batches
    compat.end_loader_workers(loader, None)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_loaders_of_torchdata_that_have_begun():
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    loader = stateful.StatefulDataLoader(TensorDataset(torch.ones(4)))
    assert {name: vars(loader)[name] for name in compat.BEGUN_LOADER} == compat.BEGUN_LOADER
    batches = iter(loader)
    next(batches)
    loader.load_state_dict(loader.state_dict())
    assert {name: vars(loader)[name] for name in compat.BEGUN_LOADER} != compat.BEGUN_LOADER


def test_store_and_timeout_of_the_process_group(group):
    compat.default_store().set("key", "value")
    assert compat.default_store().get("key") == b"value"
    assert compat.group_timeout(torch.device("cpu")) == timedelta(seconds=77)


def test_there_is_no_store_without_a_process_group():
    with pytest.raises(ValueError, match="process group"):
        compat.default_store()


def test_known_processes(monkeypatch):
    monkeypatch.setattr(PartialState, "_shared_state", {})
    assert compat.known_processes() == 0
    PartialState(cpu=True)
    assert compat.known_processes() == 1


def test_state_of_accelerators():
    assert join_processes("bf16").mixed_precision == "bf16"
    compat.accelerator_marks()["a mark"] = True
    compat.reset_accelerator_state()
    assert "a mark" not in compat.accelerator_marks()
    assert join_processes("no").mixed_precision == "no"


def test_models_of_an_accelerator():
    accelerator = join_processes("bf16")
    kept = accelerator.prepare_model(nn.Linear(1, 1))
    model = nn.Linear(1, 1)
    before = set(vars(model))
    with compat.unlisted_models(accelerator):
        accelerator.prepare_model(model)
    assert accelerator._models == [kept]
    assert set(vars(model)) - before == set(compat.SET_ON_MODELS)


def test_auto_classes_of_transformers():
    transformers = pytest.importorskip("transformers")
    assert compat.is_auto_class(transformers.AutoModelForSequenceClassification)
    assert not compat.is_auto_class(transformers.BertModel)


def test_models_of_a_configuration():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    config = transformers.BertConfig(**sizes, dtype="bfloat16")
    for kind in (transformers.AutoModelForSequenceClassification, transformers.BertForSequenceClassification):
        assert compat.model_of_config(kind, config).dtype == torch.bfloat16


def test_arguments_of_the_launch():
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(["--cpu", "--num_processes", "1", "train.py", "--seed", "3"])
    arguments, *_ = compat.validated_launch_arguments(given)
    assert isinstance(arguments, argparse.Namespace)
    assert (arguments.num_processes, arguments.training_script) == (1, "train.py")
    assert arguments.training_script_args == ["--seed", "3"]
    assert arguments.mixed_precision == "no"


def test_datasets_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    from datasets.distributed import split_dataset_by_node

    dataset = datasets.Dataset.from_dict({"x": [1, 2, 3, 4]}).to_iterable_dataset(num_shards=2)
    assert type(compat.examples_of(dataset)).__name__.endswith("ExamplesIterable")
    assert type(compat.examples_of(dataset.shuffle(seed=1))).__name__.endswith("ExamplesIterable")
    assert compat.examples_of([1]) is None
    assert compat.shares_of(dataset) == 1
    assert compat.shares_of(split_dataset_by_node(dataset, rank=0, world_size=2)) == 2
    assert compat.shares_of([1]) == 1


def test_operations_of_deepspeed(monkeypatch):
    pytest.importorskip("deepspeed")
    from deepspeed import ops

    with compat.unbuilt_deepspeed_operation("deepspeed_shm_comm"):
        assert ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_ignite_keeps_the_handlers_of_an_event():
    from accmt._compat import handlers_of

    engines = pytest.importorskip("accmt.integrations.ignite", reason="ignite is not installed")
    engine = engines.Engine(lambda engine, batch: None)
    engine.add_event_handler(engines.Events.EXCEPTION_RAISED, print)
    assert handlers_of(engine, engines.Events.EXCEPTION_RAISED) == 1
