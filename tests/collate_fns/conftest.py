"""A tokenizer of sixteen words, made here; transformers is imported where it is asked for."""

from __future__ import annotations

import pytest

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = tuple("abcdefghijk")
PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = tuple(range(5, 16))


def _tokenizer(**settings):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(SPECIAL + LETTERS)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **(names | {"mask_token": "[MASK]"} | settings))


@pytest.fixture
def make_tokenizer():
    """Settings -> the tokenizer: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, a to k 5 to 15."""
    return _tokenizer


@pytest.fixture
def tokenizer():
    """The tokenizer, padding on the right."""
    return _tokenizer()
