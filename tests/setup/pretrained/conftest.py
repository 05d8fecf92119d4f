"""Tiny models of transformers, saved in a folder, and a tokenizer and texts for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from accmt import AcceleratorModule, Callback, FunctionMetric
from accmt.collate_fns import DataCollatorForLongestSequence

SIZES = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def _bert(transformers, kind, **settings):
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, max_position_embeddings=16, **settings))


def _gpt2(transformers):
    settings = {"vocab_size": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "use_cache": False}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, bos_token_id=2, eos_token_id=3))


def _t5(transformers):
    settings = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**settings, decoder_start_token_id=0))


MAKERS = {
    "bert": lambda library: _bert(library, "BertForSequenceClassification", num_labels=3),
    "base": lambda library: _bert(library, "BertModel"),
    "masked": lambda library: _bert(library, "BertForMaskedLM"),
    "gpt2": _gpt2,
    "t5": _t5,
}


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@dataclass(frozen=True)
class Tiny:
    """Models that were saved below their names in `folder`: bert, base (without a head), masked, gpt2, t5."""

    library: Any
    folder: Path
    tokenizer: Any

    def make(self, name):
        """A new model, with other weights."""
        return MAKERS[name](self.library)

    @property
    def collate(self):
        return DataCollatorForLongestSequence(self.tokenizer)

    @staticmethod
    def texts(count):
        """Samples of different lengths, each with one of three classes."""
        samples = []
        for index in range(count):
            ids = [5 + (index * 7 + place) % 11 for place in range(2 + index % 5)]
            samples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": index % 3})
        return samples


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, transformers):
    """The folder of tiny models, a tokenizer and texts for them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijk"))}
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "[UNK]")), **names)
    models = Tiny(transformers, tmp_path_factory.mktemp("models"), tokenizer)
    for name in MAKERS:
        torch.manual_seed(0)
        models.make(name).save_pretrained(models.folder / name)
    return models


class Classifier(AcceleratorModule):
    """What a user writes around a model of transformers."""

    def __init__(self, model, collate=None):
        self.model = model
        self.collate_fn_train = collate

    def training_step(self, batch):
        return self.model(**batch).loss


@pytest.fixture
def classifier():
    """The class of a module around a model of transformers, with a collator of its own."""
    return Classifier


class Seen(Callback):
    """Keeps the model, the losses, and for each pass whether it was in training mode; can stop after a step."""

    def __init__(self, cut=None):
        super().__init__()
        self.passes, self.losses, self._cut = [], [], cut

    def on_fit_start(self):
        self.model = self.module.model
        self.model.register_forward_pre_hook(lambda model, inputs: self.passes.append(model.training))

    def on_before_backward(self, loss):
        self.losses.append(loss.item())

    def on_after_zero_grad(self, optimizer):
        if self._cut == self.state.global_step + 1:
            raise KeyboardInterrupt


@pytest.fixture
def watcher():
    """The class of a callback that keeps what happens; with `cut`, it interrupts the training after this step."""
    return Seen


@pytest.fixture
def accuracy():
    """The share of labels that have the highest logit; those of -100 do not count."""

    def compute(logits, labels):
        kept = labels != -100
        return (logits.argmax(-1)[kept] == labels[kept]).float().mean()

    return lambda: FunctionMetric("accuracy", compute, greater_is_better=True)


@pytest.fixture
def fitted(trainer, tiny, watcher):
    """What `fit` is given, samples -> the model after one epoch, and the folder of its saving."""

    def fit(module, samples, *, kwargs=None, path="model", **arguments):
        seen = watcher()
        settings = {"epochs": 1, "optimizer": "AdamW", "collate_fn": tiny.collate} | arguments
        training = trainer(path, callback=seen, **settings)
        training.fit(module, samples, **(kwargs or {}))
        return seen.model, training.best("best_train_loss").folder

    return fit


@pytest.fixture
def assert_same():
    """Two models have the same weights, bit by bit."""

    def compare(model, other):
        mine, theirs = model.state_dict(), other.state_dict()
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value.dtype == theirs[name].dtype
            assert torch.equal(value, theirs[name]), name

    return compare
