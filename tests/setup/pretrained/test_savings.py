"""What a rule saves of a model of transformers is what `from_pretrained` reads."""

import json
import sys

import pytest
import torch

from accmt import load_best, load_saving
from accmt.collate_fns import DataCollatorForLanguageModeling


def test_a_saving_is_found_and_predicts_logits(fitted, trainer, tiny, transformers):
    _, saving = fitted(tiny.folder / "bert", tiny.texts(8))
    found = transformers.BertForSequenceClassification.from_pretrained(tiny.folder / "bert")
    load_best(saving.parent, found)
    samples = [{**sample, "input_ids": sample["input_ids"][:2], "attention_mask": [1, 1]} for sample in tiny.texts(6)]
    unlabelled = [{name: value for name, value in sample.items() if name != "labels"} for sample in samples]
    with torch.no_grad():
        expected = found(torch.tensor([sample["input_ids"] for sample in samples])).logits
    for dataset in (samples, unlabelled):
        predictions = trainer(collate_fn=tiny.collate).predict(saving, dataset)
        torch.testing.assert_close(predictions, expected)


@pytest.mark.parametrize("size", ["10GB", "2KB"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_saving_is_a_model_of_transformers(fitted, tiny, transformers, assert_same, name, safe, size):
    collator = DataCollatorForLanguageModeling(tiny.tokenizer, mlm=False) if name == "gpt2" else None
    arguments = {} if collator is None else {"collate_fn": collator}
    model, saving = fitted(tiny.folder / name, tiny.texts(8), safe_serialization=safe, max_shard_size=size, **arguments)
    files = {path.name for path in saving.iterdir()}
    stem, ending = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    weights = {file for file in files if file.endswith(ending)}
    if size == "10GB":
        assert weights == {f"{stem}.{ending}"}
    else:
        assert len(weights) > 1
        index = json.loads((saving / f"{stem}.{ending}.index.json").read_text())
        assert set(index["weight_map"].values()) == weights
    extra = {"config.json", "tokenizer.json", "tokenizer_config.json", "saving.json", "MANIFEST.json"}
    if name == "gpt2":
        extra.add("generation_config.json")
    assert extra == {file for file in files - weights if not file.endswith("index.json")}
    loaded, info = getattr(transformers, type(model).__name__).from_pretrained(saving, output_loading_info=True)
    assert not any(info.values())
    assert_same(loaded, model)
    if name == "gpt2":
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert transformers.AutoTokenizer.from_pretrained(saving).get_vocab() == tiny.tokenizer.get_vocab()


def test_tied_weights_stay_tied_when_a_saving_is_loaded(fitted, tiny, classifier, assert_same):
    language = DataCollatorForLanguageModeling(tiny.tokenizer, mlm=False)
    for safe in (True, False):
        model, saving = fitted(
            tiny.folder / "gpt2", tiny.texts(8), collate_fn=language, safe_serialization=safe, path=str(safe)
        )
        assert model.lm_head.weight is model.transformer.wte.weight
        module = classifier(tiny.make("gpt2"))
        load_saving(saving, module)
        assert module.model.lm_head.weight is module.model.transformer.wte.weight
        assert_same(module.model, model)


def test_a_module_with_such_a_model_is_saved_in_the_same_way(fitted, tiny, transformers, classifier, assert_same):
    auto = transformers.AutoModelForSequenceClassification
    module = classifier(auto.from_pretrained(tiny.folder / "bert"), tiny.collate)
    model, saving = fitted(module, tiny.texts(8), collate_fn=None)
    assert model is module.model
    assert_same(auto.from_pretrained(saving), model)
    assert transformers.AutoTokenizer.from_pretrained(saving).get_vocab() == tiny.tokenizer.get_vocab()
    again = classifier(tiny.make("bert"))
    assert load_saving(saving, again).step == 2
    assert_same(again.model, model)


def test_a_saving_is_what_it_became_not_what_its_configuration_said(
    fitted, tiny, transformers, classifier, assert_same
):
    module = classifier(tiny.make("bert").to(torch.float64), tiny.collate)
    module.model.config.dtype = "float32"
    model, saving = fitted(module, tiny.texts(8), collate_fn=None)
    assert_same(transformers.AutoModelForSequenceClassification.from_pretrained(saving), model)
    assert model.config.dtype == "float32"
    assert model.config.architectures is None


def test_a_saving_can_be_trained_further(fitted, tiny):
    first, saving = fitted(tiny.folder / "bert", tiny.texts(8))
    before = {name: value.clone() for name, value in first.state_dict().items()}
    fitted(saving, tiny.texts(8), optimizer="SGD", lr=0.0, path="further")
    second, _ = fitted(saving, tiny.texts(8), optimizer="SGD", lr=0.0, path="further 2")
    assert type(second) is type(first)
    assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())


CONFIGURATION = """
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "own"
"""
MODEL = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_own import OwnConfig


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.EmbeddingBag(16, 3)
        self.post_init()

    def forward(self, input_ids, labels=None):
        logits = self.words(input_ids)
        return SequenceClassifierOutput(nn.functional.cross_entropy(logits, labels), logits)
"""


def test_a_model_with_its_own_code(fitted, transformers, assert_same, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "own"
    folder.mkdir()
    files = {"configuration_own.py": CONFIGURATION, "modeling_own.py": MODEL}
    for name, text in files.items():
        (folder / name).write_text(text)
    classes = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForSequenceClassification": "modeling_own.OwnModel",
    }
    config = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"words.weight": torch.ones(16, 3)}, folder / "pytorch_model.bin")
    samples = [{"input_ids": [5, 6], "labels": index % 3} for index in range(8)]
    model, saving = fitted(folder, samples, kwargs={"trust_remote_code": True})
    assert type(model).__name__ == "OwnModel"
    assert {path.name: path.read_text() for path in saving.glob("*.py")} == files
    auto = transformers.AutoModelForSequenceClassification
    assert_same(auto.from_pretrained(saving, trust_remote_code=True), model)


def test_the_name_that_fsdp_gives_to_a_class_is_not_saved(trainer, tiny, classifier, tmp_path):
    from accmt.setup.pretrained import extras_of

    model = tiny.make("bert")
    model.__class__ = type("FSDPBertForSequenceClassification", (type(model),), {})
    extras_of(classifier(model), model, trainer()._options)(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
