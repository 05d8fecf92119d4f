"""Optimizers: each can be built and steps, its arguments are checked, and no_decay makes the groups it promises."""

import functools
import inspect
import sys

import pytest
import torch
from torch import nn

from accmt.hyperparameters import ConfigError, HyperParameters, Optimizer

NAMES = [name for name in vars(Optimizer) if not name.startswith("_")]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.encoder = nn.Linear(3, 3)
        self.LayerNorm = nn.LayerNorm(3)
        self.attention = nn.ModuleDict({"out": nn.Linear(3, 3)})

    def forward(self, tokens):
        return self.attention["out"](self.LayerNorm(self.encoder(self.embedding(tokens)))).sum(-1)


def build(model=None, **values):
    return HyperParameters(**values).build_optimizer((model or Model()).named_parameters())


def refusal(model=None, **values):
    with pytest.raises(ConfigError) as raised:
        build(model, **values)
    return str(raised.value)


def names_of(optimizer, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [sorted(names[parameter] for parameter in group["params"]) for group in optimizer.param_groups]


def test_attributes_are_the_classes_of_torch():
    assert len(NAMES) == 14
    for name in set(NAMES) - {"Adafactor"}:
        assert getattr(Optimizer, name) is getattr(torch.optim, name)
    with pytest.raises(TypeError, match=r"use one of its attributes, such as Optimizer.AdamW"):
        Optimizer()


def test_adafactor_has_the_signature_of_transformers():
    transformers = pytest.importorskip("transformers.optimization")
    ours = inspect.signature(Optimizer.Adafactor).parameters
    theirs = inspect.signature(transformers.Adafactor).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
    assert type(build(optimizer="Adafactor")) is transformers.Adafactor


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_lowers_a_loss(name):
    torch.manual_seed(0)
    model = nn.Embedding(4, 3, sparse=True) if name == "SparseAdam" else nn.Embedding(4, 3)
    tokens = torch.arange(4)
    hps = HyperParameters(optimizer=name)
    assert hps.problems() == []
    optimizer = hps.build_optimizer(model.named_parameters())

    def loss():
        optimizer.zero_grad()
        value = model(tokens).square().sum()
        value.backward()
        return value

    before = loss().item()
    for _ in range(3):
        loss()
        optimizer.step(*([loss] if name == "LBFGS" else []))
    assert loss().item() < before


def test_arguments_reach_the_optimizer():
    optimizer = build(optimizer="AdamW", optim_kwargs={"lr": 0.25, "betas": [0.8, 0.9]})
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["lr"] == 0.25
    assert list(optimizer.defaults["betas"]) == [0.8, 0.9]


@pytest.mark.parametrize(
    "choice",
    [
        "torch.optim.Adafactor",
        torch.optim.Adafactor,
        lambda params, **arguments: torch.optim.Adafactor(params, **arguments),
        functools.partial(torch.optim.Adafactor, d=2.0),
    ],
)
def test_other_classes_and_factories(choice):
    hps = HyperParameters(optimizer=choice, optim_kwargs={"lr": 0.5})
    assert hps.problems() == []
    optimizer = hps.build_optimizer(Model().named_parameters())
    assert type(optimizer) is torch.optim.Adafactor
    assert optimizer.defaults["lr"] == 0.5


def test_only_parameters_that_require_a_gradient():
    model = Model()
    model.embedding.requires_grad_(False)
    model.encoder.requires_grad_(False)
    assert names_of(build(model), model) == [
        ["LayerNorm.bias", "LayerNorm.weight", "attention.out.bias", "attention.out.weight"]
    ]
    assert refusal(model.requires_grad_(False)) == (
        "1 mistake in HyperParameters:\n"
        "  model: none of its 7 parameters requires a gradient, so there is nothing to train. "
        "Set requires_grad=True on those to train"
    )


@pytest.mark.parametrize(
    ("words", "undecayed"),
    [
        (["BIAS", "norm"], ["LayerNorm.bias", "LayerNorm.weight", "attention.out.bias", "encoder.bias"]),
        ("norm", ["LayerNorm.bias", "LayerNorm.weight"]),
        (["attention.out.bias"], ["attention.out.bias"]),
        (["attention.out"], ["attention.out.bias", "attention.out.weight"]),
        (["norm.bias"], ["LayerNorm.bias"]),
    ],
)
def test_no_decay_groups(words, undecayed):
    model = Model()
    optimizer = build(model, optimizer="AdamW", optim_kwargs={"weight_decay": 0.1, "no_decay": words})
    rest = sorted(name for name, _ in model.named_parameters() if name not in undecayed)
    assert names_of(optimizer, model) == [rest, undecayed]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_what_is_not_decayed_stays_without_a_gradient():
    model = Model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build(model, optimizer="AdamW", optim_kwargs={"lr": 0.1, "weight_decay": 0.5, "no_decay": ["norm"]})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if "Norm" in name else 1 - 0.1 * 0.5
        assert torch.allclose(parameter, before[name] * factor), name


def test_no_decay_of_everything_or_nothing_is_one_group():
    model = Model()
    everything = build(model, optimizer="AdamW", optim_kwargs={"no_decay": ["bias", "weight"]})
    assert [group["weight_decay"] for group in everything.param_groups] == [0.0]
    nothing = build(model, optimizer="AdamW", optim_kwargs={"no_decay": []})
    assert [group["weight_decay"] for group in nothing.param_groups] == [0.01]


def test_a_parameter_of_two_names_is_taken_once_under_the_first():
    model = Model()
    model.head = nn.Linear(3, 4, bias=False)
    model.head.weight = model.embedding.weight
    pairs = list(model.named_parameters(remove_duplicate=False))
    assert [name for name, _ in pairs][-1] == "head.weight"
    optimizer = HyperParameters(optimizer="AdamW", optim_kwargs={"no_decay": ["embedding"]}).build_optimizer(pairs)
    assert names_of(optimizer, model)[1] == ["embedding.weight"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 7


def test_a_word_that_matches_nothing_is_refused_but_a_frozen_parameter_counts():
    model = Model()
    model.encoder.requires_grad_(False)
    build(model, optimizer="AdamW", optim_kwargs={"no_decay": ["encoder"]})
    assert refusal(model, optimizer="AdamW", optim_kwargs={"no_decay": ["bias", "nrom", "m.b"]}) == (
        "1 mistake in HyperParameters:\n"
        "  optim_kwargs.no_decay: 'nrom' matches the name of no parameter, remove it or correct it"
    )


def test_a_word_does_not_reach_over_a_dot():
    assert "'outbias' matches the name of no parameter" in refusal(
        optimizer="AdamW", optim_kwargs={"no_decay": ["outbias"]}
    )


def test_a_factory_may_have_a_no_decay_of_its_own():
    def factory(params, no_decay=None):
        optimizer = torch.optim.SGD(params)
        optimizer.told = no_decay
        return optimizer

    assert build(optimizer=factory, optim_kwargs={"no_decay": ["anything"]}).told == ["anything"]


@pytest.mark.parametrize(
    ("optimizer", "kwargs", "said"),
    [
        (
            "SparseAdam",
            {"lrr": 1.0},
            "optim_kwargs.lrr: SparseAdam has no such argument, did you mean 'lr'? It takes lr, betas, eps, maximize",
        ),
        (
            "SGD",
            {"zzz": 1.0},
            "optim_kwargs.zzz: SGD has no such argument. It takes lr, momentum, dampening, weight_decay, nesterov, "
            "maximize, foreach, differentiable, fused, no_decay",
        ),
        ("SGD", {"params": []}, "optim_kwargs.params: the trainer gives it, remove it"),
        (
            "SparseAdam",
            {"no_decay": ["bias"]},
            "optim_kwargs.no_decay: SparseAdam has no weight_decay, remove it or use another optimizer",
        ),
        (
            "AdamW",
            {"no_decay": [1]},
            'optim_kwargs.no_decay: must be a list of parts of parameter names, such as ["bias", "norm"], '
            "not [1] (list)",
        ),
        (
            "AdamW",
            {"no_decay": [""]},
            'optim_kwargs.no_decay: must be a list of parts of parameter names, such as ["bias", "norm"], '
            "not [''] (list)",
        ),
        ("SGD", {"lr": "1e-3"}, "optim_kwargs.lr: must be a number, not '1e-3' (str)"),
        ("SGD", {"momentum": True}, "optim_kwargs.momentum: must be a number, not True (bool)"),
        ("SGD", {"nesterov": "yes"}, "optim_kwargs.nesterov: must be true or false, not 'yes' (str)"),
        ("AdamW", {"fused": "no"}, "optim_kwargs.fused: must be True, False or None, not 'no' (str)"),
        ("SGD", {"foreach": 1}, "optim_kwargs.foreach: must be True, False or None, not 1 (int)"),
        (
            "Adam",
            {"fused": True, "foreach": True},
            "optim_kwargs.fused: cannot be True together with foreach, give one of them",
        ),
    ],
)
def test_problems_with_arguments(optimizer, kwargs, said):
    hps = HyperParameters(optimizer=optimizer, optim_kwargs=kwargs)
    assert hps.problems() == [said]
    with pytest.raises(ConfigError) as raised:
        hps.build_optimizer(Model().named_parameters())
    assert str(raised.value) == f"1 mistake in HyperParameters:\n  {said}"


def test_problems_of_factories():
    def needy(params, rank, *, alpha=1.0):
        raise AssertionError

    assert HyperParameters(optimizer=needy).problems() == [
        "optim_kwargs.rank: missing, needy cannot be built without it. Give it in optim_kwargs"
    ]
    assert HyperParameters(optimizer=lambda: None).problems() == [
        "optim_kwargs: <lambda> must take params as its first argument, by position"
    ]
    assert HyperParameters(optimizer=lambda params, **others: None, optim_kwargs={"any": 1}).problems() == []


def test_what_the_optimizer_itself_refuses():
    assert refusal(optimizer="SGD", optim_kwargs={"lr": -1.0}) == (
        "1 mistake in HyperParameters:\n  optim_kwargs: SGD rejects them: Invalid learning rate: -1.0"
    )


def test_an_error_in_a_factory_of_the_user_stays_what_it_is():
    def factory(params):
        raise KeyError("mine")

    class OwnSGD(torch.optim.SGD):
        def __init__(self, params):
            raise TypeError("of its own")

    with pytest.raises(KeyError, match="mine"):
        build(optimizer=factory)
    with pytest.raises(TypeError, match="of its own"):
        build(optimizer=OwnSGD)


def test_a_factory_of_something_else():
    assert refusal(optimizer=lambda params: 5) == (
        "1 mistake in HyperParameters:\n  optimizer: must be a factory of a torch.optim.Optimizer, not 5 (int)"
    )


def test_adafactor_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "transformers.optimization", raising=False)
    said = (
        "Adafactor is the one of transformers, which is not installed. Install it (pip install transformers), "
        "or use torch.optim.Adafactor, which has other arguments"
    )
    assert HyperParameters(optimizer="Adafactor").problems() == [f"optimizer: {said}"]
    with pytest.raises(ImportError) as raised:
        Optimizer.Adafactor([nn.Parameter(torch.zeros(1))])
    assert str(raised.value) == said
