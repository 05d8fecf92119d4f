"""load_config: the forms of a configuration, YAML as it is read, its limits, and how mistakes are told."""

import dataclasses
import os
import re

import pytest

from accmt.config.yaml_text import MAX_BYTES
from accmt.hyperparameters import Config, ConfigError, HyperParameters, load_config

FIELDS = "epochs, max_steps, batch_size, optimizer, optim_kwargs, scheduler, scheduler_kwargs, step_scheduler_per_epoch"
FULL = HyperParameters(
    epochs=3,
    max_steps=1000,
    batch_size=(32, 64),
    optimizer="AdamW",
    optim_kwargs={"lr": 1e-3, "no_decay": ["bias", "norm"]},
    scheduler="LinearWithWarmup",
    scheduler_kwargs={"warmup_ratio": 0.1},
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file and give its name, relative to the working directory."""
    monkeypatch.chdir(tmp_path)

    def written(content, name="hps.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return written


def refusal(source):
    with pytest.raises(ConfigError) as raised:
        load_config(source)
    return str(raised.value)


@pytest.mark.parametrize("sectioned", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_the_forms_of_a_file(write, sectioned, beside):
    lines = ["epochs: 3", "max_steps: 1000", "batch_size: [32, 64]"]
    if beside:
        lines += ["optimizer: AdamW", "optim_kwargs: {lr: 1e-3, no_decay: [bias, norm]}"]
        lines += ["scheduler: LinearWithWarmup", "scheduler_kwargs:", "  warmup_ratio: 0.1"]
    else:
        lines += ["optimizer:", "  type: AdamW", "  lr: 1e-3", "  no_decay:", "    - bias", "    - norm"]
        lines += ["scheduler: {type: LinearWithWarmup, warmup_ratio: 0.1}"]
    if sectioned:
        lines = ["hps:", *(f"  {line}" for line in lines)]
    lines += ["rules:", "  saving: [best_accuracy@dev]"]
    config = load_config(write("\n".join(lines)))
    assert config == Config(FULL, {"saving": ["best_accuracy@dev"]})
    assert config.hps.problems() == []


def test_a_mapping_hyperparameters_and_a_path_object(write):
    assert load_config({"epochs": 2}) == Config(HyperParameters(2), {})
    assert load_config({"hps": {"epochs": 2}, "rules": None}) == Config(HyperParameters(2), {})
    assert load_config({}) == Config(HyperParameters())
    hps = HyperParameters(4)
    assert load_config(hps).hps is hps
    write("epochs: 2")
    path = dataclasses.make_dataclass("Path", [], bases=(os.PathLike,), namespace={"__fspath__": lambda _: "hps.yaml"})
    assert load_config(path()).hps.epochs == 2


def test_classes_in_a_mapping():
    import torch

    config = load_config({"optimizer": {"type": torch.optim.AdamW, "lr": 0.1}})
    assert config.hps == HyperParameters(optimizer="AdamW", optim_kwargs={"lr": 0.1})


def test_a_type_alone_may_have_its_arguments_beside():
    config = load_config({"optimizer": {"type": "AdamW"}, "optim_kwargs": {"lr": 0.1}})
    assert config.hps == HyperParameters(optimizer="AdamW", optim_kwargs={"lr": 0.1})


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config({}).rules = {}


def test_all_mistakes_of_a_file_are_told_at_once(write):
    name = write(
        """
        hps:
          epoch: 3
          batch_size: [8, 0]
          optimizer: {type: SDG, lr: 0.1}
          optim_kwargs: {momentum: 0.9}
          scheduler: {gamma: 0.1}
        epochs: 3
        rulez: {}
        rules: [best_accuracy]
        """
    )
    assert refusal(name).replace(
        "Allowed are ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, LBFGS, NAdam, RAdam, RMSprop, Rprop, "
        "SGD, SparseAdam, a subclass of torch.optim.Optimizer, or a callable (params, **arguments) that returns one",
        "...",
    ) == (
        "8 mistakes in hps.yaml:\n"
        "  epochs: is next to hps, move it under hps\n"
        "  rulez: unknown key, did you mean 'rules'? Allowed are hps, rules\n"
        "  rules: must be a mapping, not ['best_accuracy'] (list)\n"
        "  hps.optim_kwargs: given together with arguments in optimizer, move them there or remove them\n"
        "  hps.scheduler.type: missing. Name the scheduler, such as 'type: LinearWithWarmup'\n"
        f"  hps.epoch: unknown key, did you mean 'epochs'? Allowed are {FIELDS}\n"
        "  hps.batch_size: must be a whole number of at least 1, or two of them (training, evaluation), "
        "not [8, 0] (list)\n"
        "  hps.optimizer.type: unknown optimizer 'SDG', did you mean 'SGD'? ..."
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty. It needs the hyperparameters, such as 'epochs: 1'"),
        ("# nothing\n---\n", "the file is empty. It needs the hyperparameters, such as 'epochs: 1'"),
        (
            "- epochs: 1",
            "the file must be a mapping with hps and rules, or with the hyperparameters, not [{'epochs': 1}] (list)",
        ),
        (
            "just text",
            "the file must be a mapping with hps and rules, or with the hyperparameters, not 'just text' (str)",
        ),
        ("epochs: [1", "the file is not YAML: expected ',' or ']', but got '<stream end>' (line 1)"),
        ("a: 1\n\tb: 2", "the file is not YAML: found character '\\t' that cannot start any token (line 2)"),
        ("a: 1\0", "the file is not YAML: unacceptable character #x0000: special characters are not allowed"),
        (b"\xff\xfe\x01", "the file is not text in UTF-8"),
        (
            "hps:\n  epochs: 1\n  optimizer: SGD\n  epochs: 2",
            "the file has the key 'epochs' twice in one mapping (lines 2 and 4), remove one",
        ),
        ("epochs: 1\n---\nepochs: 2", "the file is not YAML: but found another document (line 2)"),
        ("? [a]\n: 1", "the file has a list or mapping as a key (line 1)"),
        ("epochs: *one", "the file is not YAML: found undefined alias 'one' (line 1)"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "the file has a value with the tag '!!python/object/apply:os.system', which cannot be read here (line 1)",
        ),
        ("\na: !mine 1", "the file has a value with the tag '!mine', which cannot be read here (line 2)"),
        ("a: !!int one", "the file has a value with the tag '!!int', which cannot be read here (line 1)"),
        ("a: " + "9" * 5000, "the file has a number with too many digits (line 1)"),
        ("rules: &a [*a]", "the file contains a value that contains itself through an alias (line 1)"),
        ("rules: " + "[" * 32 + "]" * 32, "the file is nested more than 32 levels deep (line 1)"),
        ("rules: " + "[" * 50_000, "the file is nested more than 32 levels deep (line 1)"),
        (
            "a: &a 1\nrules: [" + "*a, " * 101 + "]",
            "the file has more than 100 aliases (*name), write the values out",
        ),
        (
            "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 50)),
            "the file has more than 100,000 values once its aliases are written out",
        ),
        ("rules: [" + "1," * 100_001 + "]", "the file has more than 100,000 values"),
        (b"#" * (MAX_BYTES + 1), "the file is larger than 1,048,576 bytes"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_files_refused(write, content, said):
    assert refusal(write(content)) == f"1 mistake in hps.yaml:\n  {said}"


def test_limits_are_inclusive(write):
    nested = "{a: " + "[" * 30 + "1" + "]" * 30 + "}"
    aliases = "[" + "*one, " * 100 + "]"
    assert load_config(write(f"rules: {nested}")).rules
    assert load_config(write(f"epochs: &one 1\nrules: {{a: {aliases}}}")).rules == {"a": [1] * 100}
    assert load_config(write("epochs: 1".ljust(MAX_BYTES))).hps.epochs == 1


def test_sources_that_are_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("gone.yaml") == f"1 mistake in gone.yaml:\n  no such file (the current folder is {tmp_path})"
    assert refusal(tmp_path) == f"1 mistake in {tmp_path}:\n  it is a directory. Give the YAML file in it"
    assert refusal("epochs: 1\nbatch_size: 2") == (
        "1 mistake in hps_config:\n  must be the path of a YAML file or a dict, not the text of a file. "
        "Read it with yaml.safe_load, or save it"
    )
    assert refusal(5) == (
        "1 mistake in hps_config:\n  must be the path of a YAML file, a dict or HyperParameters, not 5 (int)"
    )
    assert refusal("a\0b").startswith("1 mistake in a\0b:\n  the file cannot be read: ")
    assert "the file cannot be read: " in refusal("x" * 5000)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (
            {"epoch": 1},
            f"epoch: unknown key, did you mean 'epochs'? Allowed are {FIELDS}, hps, rules",
        ),
        ({1: 1}, f"1: unknown key. Allowed are {FIELDS}, hps, rules"),
        ({"hps": None}, "hps: must be a mapping with the hyperparameters, not None"),
        ({"optimizer": {"lr": 1.0}}, "optimizer.type: missing. Name the optimizer, such as 'type: AdamW'"),
        ({"epochs": "3"}, "epochs: must be a whole number of at least 1, not '3' (str)"),
        ({"optim_kwargs": 3}, "optim_kwargs: must be a mapping of argument names to values, not 3 (int)"),
        (
            {"hps": {"scheduler": {"type": "StepLR", 1: 2}}},
            "hps.scheduler: must be a mapping of argument names to values, not {1: 2} (dict)",
        ),
    ],
)
def test_mappings_refused(mapping, said):
    assert refusal(mapping) == f"1 mistake in the configuration:\n  {said}"


def test_numbers_and_truth_as_yaml_1_2_reads_them(write):
    values = {
        "1e-3": 0.001,
        "1E5": 1e5,
        ".5e-3": 0.0005,
        "+1.": 1.0,
        "-.inf": float("-inf"),
        "010": 10,
        "0o10": 8,
        "0xff": 255,
        "-3": -3,
        "true": True,
        "False": False,
        "yes": "yes",
        "on": "on",
        "NO": "NO",
        "~": None,
        "": None,
        "null": None,
        "'1'": "1",
        "1_000": "1_000",
        "1:30": "1:30",
        "2024-01-01": "2024-01-01",
        "1e": "1e",
        "!!str 1": "1",
        "!!float 1": 1.0,
    }
    content = "rules:\n" + "".join(f"  v{i}: {text}\n" for i, text in enumerate(values))
    found = list(load_config(write(content)).rules.values())
    assert found == list(values.values())
    assert [type(value) for value in found] == [type(value) for value in values.values()]


def test_anchors_a_mark_of_byte_order_and_line_ends_of_windows(write):
    content = "\ufeffhps:\r\n  optimizer: &adam {type: AdamW, lr: 1e-4}\r\nrules: {copied: *adam}\r\n"
    config = load_config(write(content))
    assert config.hps.optim_kwargs == {"lr": 1e-4}
    assert config.rules == {"copied": {"type": "AdamW", "lr": 1e-4}}


def test_a_long_value_is_shown_shortened():
    said = refusal({"epochs": "x" * 10_000})
    assert re.fullmatch(r"1 mistake in the configuration:\n  epochs: must be .*, not 'x+\.\.\.x+' \(str\)", said)
    assert len(said) < 200


def test_other_sections_beside_hps_are_those_of_the_script(write):
    text = "model: x\nmax_length: 200\ndata: {hps: 3, rules: [1]}\n1: 2\nhps: {epochs: 2}\nrules: {save: accuracy}"
    config = load_config(write(text))
    assert config == Config(HyperParameters(2), {"save": "accuracy"})


@pytest.mark.parametrize("key", ["hsp", "HPS", "hp", "rule", "Rules", "ruels"])
def test_near_misses_of_the_sections_are_mistakes(key):
    meant = "hps" if key[0] in "hH" else "rules"
    said = f"{key}: unknown key, did you mean '{meant}'? Allowed are hps, rules"
    assert refusal({"hps": {"epochs": 1}, key: {}}) == f"1 mistake in the configuration:\n  {said}"


def test_what_is_wrong_in_both_sections_is_told_at_once(write):
    said = refusal(
        write(
            "hps: {epochs: 0, optimizer: {type: Adam, lrr: 1}, scheduler: {type: StepLR}}\n"
            "rules: {saves: [accuracy], stop_when: 3}"
        )
    )
    assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == [
        "hps.epochs",
        "hps.optimizer.lrr",
        "hps.scheduler.step_size",
        "rules.saves",
        "rules.stop_when",
    ]


def test_numbers_that_pyyaml_reads_as_text():
    config = load_config(
        {
            "optimizer": {"type": "Adam", "lr": "1e-3", "betas": ["9E-1", 0.5], "no_decay": ["1e3"]},
            "scheduler": {"type": "ConstantWithWarmup", "num_warmup_steps": "1e2"},
            "rules": {"save": ["best_valid_loss", {"rule": "worst", "name": "1e3", "saving_below": "1e-1"}]},
        }
    )
    limited = {"rule": "worst", "name": "1e3", "saving_below": 0.1}
    assert config.rules == {"save": ["best_valid_loss", limited]}
    assert config.hps.optim_kwargs == {"lr": 1e-3, "betas": [0.9, 0.5], "no_decay": ["1e3"]}
    assert config.hps.scheduler_kwargs == {"num_warmup_steps": 100.0}
    assert config.problems() == []


@pytest.mark.parametrize("value", ["ten", "0.1", "1e", "1e-3.5", "e3"])
def test_other_texts_are_no_numbers(value):
    config = load_config({"optimizer": {"type": "Adam", "lr": value}})
    assert [str(problem) for problem in config.problems()] == [f"optimizer.lr: must be a number, not '{value}' (str)"]


@pytest.mark.parametrize(
    ("choice", "arguments", "said"),
    [
        ("Adafactor", {"lr": "1e-3"}, "optim_kwargs.lr: must be a number, not '1e-3' (str)"),
        ("Adam", {"betas": ("0.9", 0.999)}, "optim_kwargs.betas: must be numbers, not ('0.9', 0.999) (tuple)"),
    ],
)
def test_in_an_object_they_are_mistakes(choice, arguments, said):
    assert HyperParameters(optimizer=choice, optim_kwargs=arguments).problems() == [said]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optim", "did you mean 'optimizer'?"),
        ("num_epochs", "did you mean 'epochs'?"),
        ("train_batch_size", "did you mean 'batch_size'?"),
        ("lr_scheduler", "did you mean 'scheduler'?"),
        ("optimizer_kwargs", "did you mean 'optim_kwargs'?"),
        ("max_step", "did you mean 'max_steps'?"),
        ("learning_rate", "did you mean 'lr', an argument of the optimizer?"),
    ],
)
def test_names_of_others_are_answered_with_ours(name, meant):
    with pytest.raises(ConfigError) as raised:
        HyperParameters(2, **{name: 1})
    assert str(raised.value) == f"1 mistake in HyperParameters:\n  {name}: unknown key, {meant} Allowed are {FIELDS}"
    assert f"hps.{name}: unknown key, {meant} " in refusal({"hps": {name: 1}})
