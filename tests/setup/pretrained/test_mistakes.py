"""What cannot be a model of transformers is refused, and it is said why and what to do."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from accmt import ConfigError, HyperParameters, Trainer
from accmt.collate_fns import DataCollatorForLanguageModeling


def refused(module, kwargs=None):
    training = Trainer(HyperParameters(1), "nowhere")
    with pytest.raises(ConfigError) as caught:
        training.fit(module, [{"input_ids": [5, 6], "labels": 0}], **(kwargs or {}))
    assert not Path("nowhere").exists()
    title, line = str(caught.value).split("\n", 1)
    assert title == "1 mistake in fit(...):"
    return line.strip()


GIVE = "AutoModelForSequenceClassification"


def test_paths_without_a_model(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.folder)
    assert refused(tiny.folder / "brt") == f"module: there is no folder '{tiny.folder}/brt', did you mean 'bert'?"
    assert refused("./some/thing") == "module: there is no folder './some/thing'."
    assert refused("gpt") == (
        "module: there is no folder 'gpt', did you mean 'gpt2'? Offline, only models in the cache of Hugging "
        "Face can be loaded, and it is not there: check it, or load it once online"
    )
    assert refused(("owner/nosuch", GIVE)) == (
        "module: there is no folder 'owner/nosuch'. Offline, only models in the cache of Hugging Face can "
        "be loaded, and it is not there: check it, or load it once online"
    )
    assert refused("bert/config.json") == (
        "module: 'bert/config.json' is a file: give the folder that save_pretrained wrote"
    )
    assert refused(tmp_path) == (
        f"module: there is no config.json in the folder '{tmp_path}': give a folder that save_pretrained wrote"
    )
    assert refused(".") == (
        "module: there is no config.json in the folder '.'; "
        "there is one in 'base', 'bert', 'gpt2', 'masked', and 1 more"
    )
    assert refused("") == "module: must be a name or path, not '' (str)"


def test_classes_that_do_not_fit(tiny, transformers, monkeypatch):
    monkeypatch.chdir(tiny.folder)
    assert refused(("bert", "AutoModelForSequenceClasification")) == (
        "module: 'AutoModelForSequenceClasification' is not a model class of transformers, did you mean "
        f"'{GIVE}'? For example {GIVE}"
    )
    assert refused(("bert", "BertTokenizer")).startswith("module: 'BertTokenizer' is not a model class of transformers")
    assert refused(("bert", nn.Linear)) == "module: Linear is not a model class: it has no from_pretrained"
    assert refused(("bert", transformers.BertConfig)) == (
        "module: BertConfig.from_pretrained returned a BertConfig instead of a model"
    )
    assert refused("base") == (
        f'module: BertModel computes no loss, because it has no head: give a class that has one, ("base", "{GIVE}")'
    )
    assert refused(("bert", "GPT2LMHeadModel")) == (
        "module: 'bert' contains none of the weights of GPT2LMHeadModel: give the class that it was saved as"
    )
    assert refused(("bert", "AutoModelForCTC")).startswith("module: AutoModelForCTC.from_pretrained('bert') failed: ")
    assert refused(("bert", GIVE, 3)) == (
        'module: must be a name or path, or a pair such as ("path", "AutoModelForCausalLM"), not '
        "('bert', 'AutoModelForSequenceClassification', 3) (tuple)"
    )
    assert refused(("bert", tiny.make)).startswith("module: must be a name or path, or a pair such as ")


@pytest.mark.parametrize(
    ("architectures", "text"),
    [
        (None, "the configuration of 'some' does not name the class of its model"),
        (["Nosuch"], "'some' was saved as Nosuch, which is not a model class of transformers"),
    ],
)
def test_a_path_that_does_not_say_its_class(tmp_path, monkeypatch, architectures, text):
    monkeypatch.chdir(tmp_path)
    Path("some").mkdir()
    config = {"model_type": "bert", **({} if architectures is None else {"architectures": architectures})}
    Path("some", "config.json").write_text(json.dumps(config))
    assert refused("some") == f'module: {text}: give a class, ("some", "{GIVE}")'


def test_arguments_that_do_not_fit(tiny, regression, monkeypatch):
    monkeypatch.chdir(tiny.folder)
    assert refused("bert", {"num_lables": 3}) == (
        "num_lables: neither fit nor BertForSequenceClassification.from_pretrained has this argument, "
        "did you mean 'num_labels'?"
    )
    assert refused("bert", {"val_datset": tiny.texts(2)}) == (
        "val_datset: neither fit nor BertForSequenceClassification.from_pretrained has this argument, "
        "did you mean 'val_dataset'?"
    )
    assert refused(("bert", GIVE), {"num_labels": 5}) == (
        "module: 'bert' does not match BertForSequenceClassification; "
        "with ignore_mismatched_sizes=True such weights are newly initialized:\n"
        "    classifier.bias has the shape (3,) there and (5,) here\n"
        "    classifier.weight has the shape (3, 8) there and (5, 8) here"
    )
    assert refused(regression(), {"num_labels": 3}) == (
        "num_labels: unknown argument. Only for a model given by its name there are more: those of from_pretrained"
    )
    text = refused("bert", {"attn_implementation": "nosuch"})
    assert text.startswith("module: BertForSequenceClassification.from_pretrained('bert') failed: ValueError: ")


def test_without_transformers(tiny, transformers, monkeypatch):
    monkeypatch.chdir(tiny.folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refused("bert") == (
        "module: 'bert' names a model of transformers, which is not installed: pip install transformers"
    )


def test_what_could_not_be_saved_is_refused_before_the_training(tiny, classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = classifier(tiny.make("gpt2"), DataCollatorForLanguageModeling(tiny.tokenizer, mlm=False))
    module.model.generation_config.temperature = 0.5
    text = refused(module)
    assert text.startswith(
        "module: GPT2LMHeadModel could be trained, but not saved with its configuration and tokenizer: "
    )
    assert "temperature" in text
    training = Trainer(HyperParameters(1, batch_size=4), "model", disable_model_saving=True, dataloader_num_workers=0)
    training.fit(module, tiny.texts(4))


@pytest.mark.parametrize(
    ("samples", "error", "text"),
    [
        (
            [{"input_ids": torch.tensor([5, 6])}],
            ValueError,
            "BertForSequenceClassification computed no loss: it needs 'labels' in its batches; the batch has input_ids",
        ),
        (
            [(torch.tensor([5, 6]), 1)],
            TypeError,
            "a batch for a model of transformers is a dictionary, or a pair (dictionary, labels), not a list",
        ),
    ],
)
def test_batches_that_do_not_fit(trainer, tiny, samples, error, text):
    with pytest.raises(error) as caught:
        trainer().fit(tiny.folder / "bert", samples)
    assert str(caught.value) == text


def test_metrics_of_what_there_is_not(trainer, tiny, accuracy):
    training = trainer(metrics=accuracy(), collate_fn=tiny.collate)
    places = [{"input_ids": [5, 6], "start_positions": 0, "end_positions": 1}] * 4
    text = (
        "metrics get the logits of the model and the labels of the batch, and BertForQuestionAnswering returned "
        "no 'logits': leave the metrics out, or write an AcceleratorModule"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}\n"):
        training.fit((tiny.folder / "base", "AutoModelForQuestionAnswering"), places, {"dev": places})


def test_outputs_without_names(trainer, tiny):
    training = trainer(collate_fn=tiny.collate)
    text = "BertForSequenceClassification returned a tuple, in which the loss has no name: leave out return_dict=False"
    with pytest.raises(ValueError, match=f"^{text}\n"):
        training.fit(tiny.folder / "bert", tiny.texts(4), return_dict=False)
