"""Collator that makes labels for language modeling, masked and causal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accmt.collate_fns.columns import IDS, batch_columns, pad_sequences, read_columns, stack
from accmt.collate_fns.samples import collate, is_composed, require_tokenized
from accmt.collate_fns.tokenizer import (
    LABEL_PAD,
    masking_problems,
    pad_token_is_only_padding,
    padding_of,
    padding_problems,
    random_words,
    special_positions,
)
from accmt.config.errors import raise_problems
from accmt.config.kinds import FLAG, SHARE, WHOLE


@dataclass(frozen=True, eq=False)
class DataCollatorForLanguageModeling:
    """Pads tokenized samples to the longest of their batch and makes the `labels` of language modeling from them.

    With `mlm`, tokens are chosen at random with `mlm_probability`: never padding, special tokens, or tokens with a 1 in
    the samples' `special_tokens_mask`. Labels are the original tokens where chosen, and `ignore_index` elsewhere (all
    of them, if chance chooses no token). Of the chosen tokens, a share of `masked_to_mask` becomes the mask token; half
    of the others become a random word (uniformly, never a special token), the other half stays unchanged. This is the
    scheme of BERT (Devlin et al., 2019, arXiv:1810.04805). Without `mlm`, labels are `input_ids`, not shifted, with
    `ignore_index` at padding.

    Random numbers come from torch's generator: a seed reproduces them. A DataLoader worker uses its own generator.

    Samples and padding are as in `DataCollatorForSeq2Seq`, but at least one element of a sample is a dictionary with
    `input_ids`, its `labels`, if any, are replaced, and `special_tokens_mask` is removed. If `attention_mask` is
    missing, it is added, since a model would otherwise treat padding as text. Padding is where `attention_mask` is 0.
    If samples have none, padding is what was added here, and existing pad tokens in a sample, but these only if the pad
    token has no other use, such as the end of the text.

    Args:
        tokenizer: A tokenizer like those of Hugging Face, with a pad token, and a mask token for `mlm`.
        mlm: Masked language modeling; False for causal language modeling.
        mlm_probability: The share of tokens to predict, 0 to 1.
        ignore_index: The label of tokens not to predict; losses ignore -100.
        masked_to_mask: The share of the chosen tokens that become the mask token, 0 to 1.
        apply_random_words: Whether half of the other chosen tokens become random words; if not, all of them stay.
        force_one_output: Keep only the first element of samples that are tuples: the batch is one dictionary.

    Raises:
        ConfigError: An argument is wrong, or the tokenizer lacks a required attribute.
    """

    tokenizer: Any = field(repr=False)
    mlm: bool = True
    mlm_probability: float = 0.15
    ignore_index: int = LABEL_PAD
    masked_to_mask: float = 0.8
    apply_random_words: bool = True
    force_one_output: bool = False

    def __post_init__(self) -> None:
        problems = padding_problems(self.tokenizer)
        if not problems and self.mlm:
            problems += masking_problems(self.tokenizer, self.apply_random_words)
        problems += FLAG.problems("mlm", self.mlm)
        problems += SHARE.problems("mlm_probability", self.mlm_probability)
        problems += WHOLE.problems("ignore_index", self.ignore_index)
        problems += SHARE.problems("masked_to_mask", self.masked_to_mask)
        problems += FLAG.problems("apply_random_words", self.apply_random_words)
        problems += FLAG.problems("force_one_output", self.force_one_output)
        raise_problems(problems, f"{type(self).__name__}(...)")

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Return the batch of these samples: a dictionary, or a tuple if they are tuples and not `force_one_output`.

        Raises:
            ValueError: The samples do not fit together, or they have no `input_ids`.
        """
        if self.force_one_output:
            samples = [sample[0] if is_composed(sample) and len(sample) > 0 else sample for sample in samples]
        require_tokenized(type(self).__name__, samples)
        return collate(samples, self._dictionaries, stack)

    def _dictionaries(self, dictionaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = {key: column for key, column in read_columns(dictionaries).items() if key != "labels"}
        batch = batch_columns(columns, padding_of(self.tokenizer, self.ignore_index), stack)
        padding = self._padding(batch, columns[IDS])
        batch.setdefault("attention_mask", (~padding).long())
        marked = batch.pop("special_tokens_mask", None)
        if self.mlm:
            fixed = padding | special_positions(self.tokenizer, batch[IDS])
            batch[IDS], batch["labels"] = self._mask(batch[IDS], fixed if marked is None else fixed | marked.bool())
        else:
            batch["labels"] = batch[IDS].masked_fill(padding, self.ignore_index)
        return batch

    def _padding(self, batch: Mapping[str, Any], sequences: Sequence[Tensor]) -> Tensor:
        """Return True where the `input_ids` of a batch, padded from these sequences, are padding."""
        ids: Tensor = batch[IDS]
        mask: Tensor | None = batch.get("attention_mask")
        if mask is not None and mask.shape == ids.shape:
            return mask == 0
        side = padding_of(self.tokenizer, self.ignore_index).side
        added = pad_sequences(
            [torch.zeros_like(sequence, dtype=torch.bool) for sequence in sequences], True, side
        ).bool()
        return added | (ids == self.tokenizer.pad_token_id) if pad_token_is_only_padding(self.tokenizer) else added

    def _mask(self, ids: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids, with some that are not fixed replaced, and their labels."""
        chosen = (torch.rand(ids.shape, device=ids.device) < self.mlm_probability) & ~fixed
        labels = ids.masked_fill(~chosen, self.ignore_index)
        # One random number per token decides its fate: 0 to 1 is divided into intervals as large as the shares.
        fate = torch.rand(ids.shape, device=ids.device)
        masked = chosen & (fate < self.masked_to_mask)
        ids = ids.masked_fill(masked, self.tokenizer.mask_token_id)
        if self.apply_random_words:
            replaced = chosen & ~masked & (fate < (1 + self.masked_to_mask) / 2)
            ids = torch.where(replaced, random_words(self.tokenizer, ids.shape).to(ids.device), ids)
        return ids, labels
