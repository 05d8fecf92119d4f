"""How the model is prepared: compiled, with gradient checkpointing, in mixed precision, wrapped or bare."""

import logging

import pytest
import torch
from torch import nn

from accmt import AcceleratorModule, ConfigError, Trainer
from accmt.data.device import DeviceTransfer


class Backend:
    """A compiler that counts what it compiles and runs it as it is."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def weights(module):
    return [parameter.detach().clone() for parameter in module.model.parameters()]


@pytest.mark.proves("Trainer(compile)", "Trainer(compile_kwargs)")
def test_compile_compiles_model_and_teacher_and_changes_nothing_else(trainer, regression, data):
    plain = regression()
    start = {name: value.clone() for name, value in plain.model.state_dict().items()}
    trainer("plain", epochs=1).fit(plain, data(8), data(4))

    class Distilled(regression):
        def __init__(self):
            super().__init__()
            self.teacher = nn.Sequential(nn.Linear(4, 1))

        def training_step(self, batch):
            self.teacher(batch[0])
            return super().training_step(batch)

    model_backend = Backend()
    module = Distilled()
    module.model.load_state_dict(start)
    training = trainer("compiled", epochs=1, compile=True, compile_kwargs={"backend": model_backend})
    training.fit(module, data(8), data(4))
    assert model_backend.graphs >= 2
    torch.testing.assert_close(weights(module), weights(plain))
    saved = torch.load(training.best("best_valid_loss").folder / "pytorch_model.bin", weights_only=True)
    assert list(saved) == list(plain.model.state_dict())
    assert type(module.model) is nn.Sequential
    assert type(module.teacher) is nn.Sequential


@pytest.mark.proves("Trainer(compile_kwargs)")
def test_compile_by_the_name_of_a_backend(trainer, regression, data):
    module = regression()
    trainer(epochs=1, compile=True, compile_kwargs={"backend": "eager"}).fit(module, data(8))
    with pytest.raises(Exception, match="nosuchbackend"):
        trainer("unknown", epochs=1, compile=True, compile_kwargs={"backend": "nosuchbackend"}).fit(module, data(8))


class Checkpointed(nn.Module):
    """A model that tells how gradient checkpointing was asked for."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.asked = []

    def forward(self, inputs):
        return self.linear(inputs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None):
        self.asked.append(gradient_checkpointing_kwargs)


@pytest.mark.proves("Trainer(gradient_checkpointing)", "Trainer(gradient_checkpointing_kwargs)")
@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({}, []),
        ({"gradient_checkpointing": True}, [None]),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
            [{"use_reentrant": False}],
        ),
    ],
)
def test_gradient_checkpointing_is_asked_of_the_model(trainer, regression, data, arguments, asked):
    module = regression()
    module.model = Checkpointed()
    trainer(epochs=1, **arguments).fit(module, data(8))
    assert module.model.asked == asked


def test_a_model_without_gradient_checkpointing_is_refused(trainer, regression, data):
    with pytest.raises(ConfigError) as caught:
        trainer(gradient_checkpointing=True).fit(regression(), data(8))
    assert str(caught.value) == (
        "1 mistake in fit(...):\n"
        "  gradient_checkpointing: needs a method gradient_checkpointing_enable, and Sequential has none"
    )


def test_arguments_of_what_is_off_are_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Trainer({}, tmp_path, compile_kwargs={"backend": "eager"}, gradient_checkpointing_kwargs={"a": True})
    assert str(caught.value) == (
        "2 mistakes in Trainer(...):\n"
        "  compile_kwargs: is given, and compile is not: give compile=True\n"
        "  gradient_checkpointing_kwargs: is given, and gradient_checkpointing is not: give gradient_checkpointing=True"
    )


class Dtypes(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(4, 1)
        self.seen = []

    def training_step(self, batch):
        product = self.model(batch[0])
        self.seen.append((torch.is_autocast_enabled("cpu"), product.dtype))
        hook = self.model.register_forward_hook(lambda module, inputs, output: self.seen.append(output.dtype))
        self.model(batch[0])
        hook.remove()
        return nn.functional.mse_loss(product, batch[1])

    def validation_step(self, key, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


def test_mixed_precision_without_a_launcher(trainer, data):
    computed = {}
    for precision in ("bf16", "no", None):

        class Inner(nn.Linear):
            def forward(self, inputs, precision=precision):
                output = super().forward(inputs)
                computed.setdefault(precision, output.dtype)
                return output

        module = Dtypes()
        module.model = nn.Sequential(Inner(4, 1))
        trainer(f"model-{precision}", epochs=1, mixed_precision=precision).fit(module, data(8), data(4))
        assert all(parameter.dtype == torch.float32 for parameter in module.model.parameters())
    assert computed == {"bf16": torch.bfloat16, "no": torch.float32, None: torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, fp16 works")
def test_fp16_without_a_gpu(trainer, data):
    with pytest.raises(ConfigError) as caught:
        trainer(mixed_precision="fp16").fit(Dtypes(), data(8))
    assert str(caught.value) == "1 mistake in fit(...):\n  mixed_precision: fp16 needs a GPU: on CPUs use bf16"
    trainer("after").fit(Dtypes(), data(8))


def test_a_precision_that_there_is_not(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Trainer({}, tmp_path, mixed_precision="bf61")
    assert str(caught.value) == (
        "1 mistake in Trainer(...):\n  mixed_precision: must be one of no, fp16, bf16, or None, not 'bf61' (str)"
    )


class Chatty(nn.Linear):
    """A model that logs when it is moved, as engines do when they prepare one."""

    def to(self, *arguments, **options):
        logging.getLogger("engine").info("moving")
        logging.getLogger("engine").warning("careful")
        return super().to(*arguments, **options)


@pytest.mark.proves("Trainer(enable_prepare_logging)")
@pytest.mark.parametrize(("enabled", "logged"), [(False, ["careful"]), (True, ["moving", "careful"])])
def test_what_is_logged_while_the_model_is_prepared(trainer, data, caplog, enabled, logged):
    module = Dtypes()
    module.model = Chatty(4, 1)
    with caplog.at_level(logging.INFO, logger="engine"):
        trainer(epochs=1, enable_prepare_logging=enabled).fit(module, data(8))
        logging.getLogger("engine").info("afterwards")
    assert [record.message for record in caplog.records if record.name == "engine"] == [*logged, "afterwards"]


class Engine:
    """What `DeviceTransfer` asks of an Accelerator."""

    def __init__(self, kind, precision):
        self.distributed_type, self.mixed_precision, self.device = kind, precision, torch.device("cpu")


@pytest.mark.proves("Trainer(prepare_batch)")
@pytest.mark.parametrize(
    ("kind", "precision", "converts", "expected"),
    [
        ("DEEPSPEED", "bf16", True, torch.bfloat16),
        ("DEEPSPEED", "fp16", True, torch.float16),
        ("DEEPSPEED", "no", True, torch.float32),
        ("DEEPSPEED", "bf16", False, torch.float32),
        ("NO", "bf16", True, torch.float32),
        ("MULTI_CPU", "bf16", True, torch.float32),
    ],
)
def test_batches_are_converted_for_deepspeed_only(kind, precision, converts, expected):
    place = DeviceTransfer.of(Engine(kind, precision), moves=True, converts=converts)
    batch = {"inputs": [torch.ones(2), torch.ones(2, dtype=torch.int64)], "name": "a", "mask": torch.ones(2) > 0}
    placed = place(batch)
    assert [tensor.dtype for tensor in placed["inputs"]] == [expected, torch.int64]
    assert placed["mask"].dtype == torch.bool
    assert placed["name"] == "a"
    assert bool(place) == (expected != torch.float32)
