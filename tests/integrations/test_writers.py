"""What the ready writers write is what accmt and transformers load."""

import pytest
import torch
from torch import nn

from accmt import load_best
from accmt.integrations.loop import Rules
from accmt.integrations.writers import pretrained, state_dict_of


def saved_by(write, folder):
    with Rules(folder, "best_valid_loss", datasets=["dev"]) as rules:
        rules.step(epoch=1)
        return rules.save(rules.evaluated({"dev": {"valid_loss": torch.tensor(0.5)}}), write)


@pytest.mark.parametrize("is_safe", [True, False])
@pytest.mark.parametrize("is_dict", [True, False])
def test_a_state_dict_is_what_load_best_loads(tmp_path, is_safe, is_dict):
    torch.manual_seed(1)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    wrapped = nn.DataParallel(model)
    write = state_dict_of(model.state_dict() if is_dict else wrapped, safe_serialization=is_safe)
    assert [verdict.outcome for verdict in saved_by(write, tmp_path / "model").verdicts] == ["saved"]
    assert load_best(tmp_path / "model", other).values == {"valid_loss": 0.5}
    assert torch.equal(model.weight, other.weight)


def test_pretrained_saves_each_part_unwrapped(tmp_path):
    class Part:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    class Model(nn.Linear):
        def save_pretrained(self, folder):
            (folder / "config.json").write_text("{}")

    saved_by(pretrained(nn.DataParallel(Model(1, 1)), Part()), tmp_path / "model")
    names = {path.name for path in (tmp_path / "model/best_valid_loss").iterdir()}
    assert names == {"config.json", "tokenizer.json", "saving.json", "MANIFEST.json"}
