"""Reads what collators need from a tokenizer: any object with the attributes of Hugging Face's tokenizers.

It is read again for every batch, so that later changes of `padding_side` take effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accmt.config.errors import Problem, must_be

LABEL_PAD = -100
_NAMED = ("pad", "mask", "cls", "sep", "bos", "eos", "unk")


@dataclass(frozen=True, slots=True)
class Padding:
    """Ids that sequences are padded with, and the side of padding ("left" or "right")."""

    token: int
    token_type: int
    label: int
    side: str

    def value(self, key: str) -> int:
        """Return the number that the sequences under a key are padded with.

        `..input_ids`: the pad token; `labels` and `.._labels`: the label pad id; `..token_type_ids`: the tokenizer's
        pad type; `..special_tokens_mask`: 1, because padding is special; all others, including masks and positions: 0.
        """
        if key.endswith("input_ids"):
            return self.token
        if is_label(key):
            return self.label
        if key.endswith("token_type_ids"):
            return self.token_type
        return 1 if key.endswith("special_tokens_mask") else 0


def is_label(key: str) -> bool:
    """Return whether a key of a dictionary names labels."""
    return key in ("label", "labels") or key.endswith("_labels")


def padding_of(tokenizer: Any, label: int) -> Padding:
    """Return how this tokenizer pads, with this id for labels."""
    side = getattr(tokenizer, "padding_side", "right")
    return Padding(tokenizer.pad_token_id, getattr(tokenizer, "pad_token_type_id", 0) or 0, label, side)


def padding_problems(tokenizer: Any) -> list[Problem]:
    """Return the problems that keep a tokenizer from padding."""
    if isinstance(tokenizer, type) or not hasattr(tokenizer, "pad_token_id"):
        return [Problem("tokenizer", must_be("a tokenizer (an object with pad_token_id)", tokenizer))]
    problems = []
    if tokenizer.pad_token_id is None:
        problems.append(
            Problem("tokenizer", "has no pad token: set its pad_token, for example to its eos_token, or add one to it")
        )
    side = getattr(tokenizer, "padding_side", "right")
    if side not in ("left", "right"):
        problems.append(Problem("tokenizer.padding_side", must_be("'left' or 'right'", side)))
    return problems


def masking_problems(tokenizer: Any, random_words: bool) -> list[Problem]:
    """Return the problems that prevent masked language modeling, with or without random words."""
    problems = []
    if getattr(tokenizer, "mask_token_id", None) is None:
        text = "has no mask token, which mlm=True needs: set its mask_token, or give mlm=False"
        problems.append(Problem("tokenizer", text))
    if not hasattr(tokenizer, "all_special_ids") and not hasattr(tokenizer, "get_special_tokens_mask"):
        text = "does not say which tokens are special, which mlm=True needs: it has no all_special_ids and no "
        problems.append(Problem("tokenizer", text + "get_special_tokens_mask"))
    if random_words:
        size = _vocabulary_size(tokenizer)
        if size is None:
            text = "does not say how many words it has, which apply_random_words=True needs: it has no length and no "
            problems.append(Problem("tokenizer", text + "vocab_size"))
        elif len(_special_ids(tokenizer)[_special_ids(tokenizer) < size]) >= size:
            text = "has special tokens only, and apply_random_words=True needs words: give apply_random_words=False"
            problems.append(Problem("tokenizer", text))
    return problems


def special_positions(tokenizer: Any, ids: Tensor) -> Tensor:
    """Return True where `ids` (samples x tokens) are special tokens, including the unknown and the mask token."""
    special = torch.isin(ids, _special_ids(tokenizer).to(ids.device))
    if hasattr(tokenizer, "all_special_ids"):
        return special
    rows = [tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True) for row in ids.tolist()]
    return special | torch.tensor(rows, dtype=torch.bool, device=ids.device).reshape(ids.shape)


def random_words(tokenizer: Any, shape: torch.Size) -> Tensor:
    """Draw ids uniformly from all that are not special, with torch's generator."""
    size = _vocabulary_size(tokenizer)
    assert size is not None
    special = _special_ids(tokenizer)
    special = special[special < size]
    ranks = torch.randint(size - len(special), shape)
    # The word of rank r has the id r plus the number of special ids before it: the number of special[i] - i <= r.
    return ranks + torch.searchsorted(special - torch.arange(len(special)), ranks, right=True)


def pad_token_is_only_padding(tokenizer: Any) -> bool:
    """Return whether the pad token has no other use, such as the end of the text."""
    others = (getattr(tokenizer, f"{name}_token_id", None) for name in _NAMED if name != "pad")
    return tokenizer.pad_token_id not in others


def _special_ids(tokenizer: Any) -> Tensor:
    named = (getattr(tokenizer, f"{name}_token_id", None) for name in _NAMED)
    ids = {*getattr(tokenizer, "all_special_ids", ()), *named} - {None}
    return torch.tensor(sorted(ids), dtype=torch.int64)


def _vocabulary_size(tokenizer: Any) -> int | None:
    """Return the number of tokens, including added ones (which `vocab_size` omits) if the tokenizer has a length."""
    return len(tokenizer) if hasattr(tokenizer, "__len__") else getattr(tokenizer, "vocab_size", None)
