"""A checkpoint is taken up by the training that made it, and touches nothing of another one."""

import json

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import MultiStepLR, StepLR

from accmt.checkpoint import format as contents
from accmt.checkpoint.extra_state import ExtraState
from accmt.checkpoint.format import Mismatch, ModelParts
from accmt.checkpoint.optimizer_state import NamedOptimizer
from accmt.checkpoint.serialization import pack
from accmt.checkpoint.tensor_files import read_tensors, write_files, write_tensors


class Counting(nn.Module):
    """A module with state beside its parameters: a dictionary with a tensor in it."""

    def __init__(self):
        super().__init__()
        self.seen = {"batches": 0, "histogram": torch.zeros(3)}

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


def make(width=4, optimizer=AdamW, scheduler=StepLR, groups=1, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), Counting(), nn.Linear(width, 1))
    parameters = list(model.parameters())
    cut = len(parameters) // groups
    split = [parameters] if groups == 1 else [parameters[:cut], parameters[cut:]]
    stepped = optimizer([{"params": group} for group in split], lr=0.1)
    if scheduler is None:
        return parts_of(model, stepped)
    arguments = {"milestones": [2, 5]} if scheduler is MultiStepLR else {"step_size": 2}
    return parts_of(model, stepped, scheduler(stepped, **arguments))


def parts_of(model, optimizer, scheduler=None):
    kept = ExtraState(None, model)
    stateful = {"optimizer": NamedOptimizer(optimizer, kept.parameters), "scheduler": scheduler}
    return ModelParts(model, {name: part for name, part in stateful.items() if part is not None}, kept)


def optimizer_of(parts):
    return parts.stateful["optimizer"].optimizer


def train(parts, steps=3):
    for _ in range(steps):
        outputs = parts.model[3](parts.model[1](parts.model[0](torch.randn(5, 3))))
        outputs.square().mean().backward()
        optimizer_of(parts).step()
        if "scheduler" in parts.stateful:
            parts.stateful["scheduler"].step()
        optimizer_of(parts).zero_grad()
    parts.model[2].seen["batches"] += steps
    parts.model[2].seen["histogram"] += steps
    return parts


def written(folder, parts, **states):
    names = [path.name for path in write_files(folder, contents.shared_files(0, parts, states))]
    assert sorted(names) == ["model.safetensors", "optimizer.safetensors", "trainer.json"]
    return contents.read_trainer(folder)


def load(folder, parts, trainer):
    saved = contents.read_model(folder, parts, trainer)
    contents.load_model(parts, saved)
    return saved.notes


def everything(parts):
    return [parts.model.state_dict(), *(part.state_dict() for part in parts.stateful.values())]


def refusal(folder, parts, trainer):
    """The text of the refusal; and that nothing was loaded."""
    before = repr(everything(parts))
    with pytest.raises(Mismatch) as caught:
        load(folder, parts, trainer)
    assert repr(everything(parts)) == before
    return str(caught.value)


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
@pytest.mark.parametrize("scheduler", [StepLR, MultiStepLR, None])
def test_another_object_goes_on_bit_by_bit(tmp_path, optimizer, scheduler):
    first = train(make(optimizer=optimizer, scheduler=scheduler))
    trainer = written(tmp_path, first, engine={"step": 3})
    assert trainer["engine"] == {"step": 3}
    second = make(optimizer=optimizer, scheduler=scheduler, seed=1)
    load(tmp_path, second, trainer)
    for parts in (first, second):
        torch.manual_seed(5)
        train(parts)
    assert repr(everything(first)) == repr(everything(second))
    assert second.model[2].seen["batches"] == 6
    assert second.model[2].seen["histogram"].tolist() == [6, 6, 6]
    for mine, other in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert not isinstance(mine, torch.Tensor) or torch.equal(mine, other)


def test_another_model_is_refused_with_every_difference(tmp_path):
    trainer = written(tmp_path, train(make()))
    other = make(width=5)
    other.model.append(nn.Linear(1, 1, bias=False))
    del other.model[0].bias
    assert refusal(tmp_path, other, trainer) == (
        f"{tmp_path} is a checkpoint of another model; nothing was loaded:\n"
        f"  0.bias is not in the model\n"
        f"  0.weight has the shape (4, 3) in the checkpoint and (5, 3) in the model\n"
        f"  1.bias has the shape (4,) in the checkpoint and (5,) in the model\n"
        f"  1.running_mean has the shape (4,) in the checkpoint and (5,) in the model\n"
        f"  1.running_var has the shape (4,) in the checkpoint and (5,) in the model\n"
        f"  1.weight has the shape (4,) in the checkpoint and (5,) in the model\n"
        f"  3.weight has the shape (1, 4) in the checkpoint and (1, 5) in the model\n"
        f"  4.weight is not in the checkpoint\n"
        f"Give another model_path, or start from scratch with resume=False."
    )


def test_a_long_list_of_differences_is_cut(tmp_path):
    trainer = written(tmp_path, make())
    other = make()
    other.model.extend([nn.Linear(1, 1) for _ in range(10)])
    text = refusal(tmp_path, other, trainer)
    assert text.count("is not in the checkpoint") == 8
    assert "\n  ... and 12 more\n" in text


def test_the_state_of_an_optimizer_goes_by_name(tmp_path):
    """Into other groups, and into the same parameters in another order."""
    first = train(make())
    trainer = written(tmp_path, first)
    grouped, other = make(groups=2, seed=1), make(scheduler=None, seed=1)
    reversed_ = AdamW([*other.model.parameters()][::-1], lr=0.1)
    turned = parts_of(other.model, reversed_, StepLR(reversed_, 2))
    note = "the parameters of the optimizer are grouped differently than before"
    for other, expected in ((grouped, [note]), (turned, [])):
        assert load(tmp_path, other, trainer) == expected
        for mine, theirs in zip(first.model.parameters(), other.model.parameters(), strict=True):
            moments = [optimizer_of(part).state[one] for part, one in ((first, mine), (other, theirs))]
            assert torch.equal(moments[0]["exp_avg"], moments[1]["exp_avg"])


def test_groups_go_by_the_names_in_them(tmp_path):
    first = make(groups=2)
    optimizer_of(first).param_groups[1]["lr"] = 0.7
    trainer = written(tmp_path, train(first))
    other = make(groups=2, seed=1)
    optimizer_of(other).param_groups.reverse()
    load(tmp_path, other, trainer)
    rates = [[group["lr"] for group in optimizer_of(part).param_groups] for part in (first, other)]
    assert rates[0] == rates[1][::-1]


def test_an_optimizer_by_number_is_read(tmp_path):
    """As it is written for an optimizer whose state cannot be by name."""
    first = train(make())
    trainer = written(tmp_path, first)
    state = optimizer_of(first).state_dict()
    assert trainer["parts"]["optimizer"]["param_groups"][0]["params"][0] == "model.0.weight"
    packed, tensors = pack({"optimizer": state})
    trainer["parts"]["optimizer"] = packed["optimizer"]
    others = read_tensors(tmp_path / "optimizer.safetensors")
    write_tensors(tmp_path / "optimizer.safetensors", {**others, **tensors})
    second = make(seed=1)
    load(tmp_path, second, trainer)
    assert repr(optimizer_of(second).state_dict()) == repr(state)
    assert "groups of [6] parameters in the checkpoint and [3, 3] here" in refusal(tmp_path, make(groups=2), trainer)


def test_another_optimizer_and_scheduler_are_refused(tmp_path):
    trainer = written(tmp_path, train(make(optimizer=SGD)))
    assert refusal(tmp_path, make(optimizer=AdamW, scheduler=MultiStepLR), trainer) == (
        f"{tmp_path} is a checkpoint of another training; nothing was loaded:\n"
        f"  the optimizer is SGD in the checkpoint and AdamW here\n"
        f"  the scheduler is StepLR in the checkpoint and MultiStepLR here\n"
        f"Give another model_path, or start from scratch with resume=False."
    )


def test_missing_and_additional_parts_are_refused(tmp_path):
    with_scheduler, without = make(), make(scheduler=None)
    trainer = written(tmp_path, with_scheduler)
    assert "\n  the checkpoint has a scheduler, and this training has none\n" in refusal(tmp_path, without, trainer)
    trainer = written(tmp_path, without)
    assert "\n  there is no scheduler in the checkpoint\n" in refusal(tmp_path, with_scheduler, trainer)


def test_an_older_schema_is_refused(tmp_path):
    data = written(tmp_path, make())
    (tmp_path / "trainer.json").write_text(json.dumps({**data, "schema": 1}))
    with pytest.raises(Mismatch, match=r"schema 1, this one reads 2\): .* start from scratch with resume=False"):
        contents.read_trainer(tmp_path)


def test_newer_schema_is_refused(tmp_path):
    written(tmp_path, make())
    data = json.loads((tmp_path / "trainer.json").read_text())
    (tmp_path / "trainer.json").write_text(json.dumps({**data, "schema": 99}))
    with pytest.raises(Mismatch) as caught:
        contents.read_trainer(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} was written by a newer accmt (schema 99, this one reads up to 2): update accmt to continue from it"
    )


def test_what_each_process_knows(tmp_path):
    """The file of tensors holds those of every part, under names that no two parts share."""
    for rank in (0, 1):
        random = {"now": {"torch": torch.tensor([rank])}, "epoch": {"torch": torch.tensor([rank + 5])}}
        own = {"losses": {"count": rank}, "objects": {"a": {"b": torch.ones(2)}}, "data": None}
        states = {**own, "random": random, "gradients": {"model.weight": torch.zeros(3)}}
        files = list(write_files(tmp_path, contents.ranked_files(rank, states)))
        assert [path.name for path in files] == [f"rng-{rank}.safetensors", f"process-{rank}.json"]
        assert repr(contents.read_ranked(tmp_path, rank)) == repr(states)
    tensors = read_tensors(tmp_path / "rng-1.safetensors")
    assert sorted(tensors) == ["epoch.torch", "gradient.model.weight", "now.torch", "object.a.b"]
    assert contents.read_ranked(tmp_path, 2) is None


def test_only_json_and_safetensors(tmp_path):
    states = {"random": {"now": {"torch": torch.get_rng_state()}, "epoch": {}}, "gradients": {}}
    list(write_files(tmp_path, contents.ranked_files(0, states)))
    written(tmp_path, train(make()))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_tied_weights_stay_tied(tmp_path):
    def tied():
        model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
        model["head"].weight = model["embedding"].weight
        return ModelParts(model, {}, ExtraState(None, model))

    first, second = tied(), tied()
    load(tmp_path, second, written(tmp_path, first))
    assert second.model["head"].weight is second.model["embedding"].weight
    assert torch.equal(first.model["head"].weight, second.model["head"].weight)
