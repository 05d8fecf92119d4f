"""The collator that makes labels for language modeling, masked and causal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accmt.collate_fns.checks import flag_problems, raise_problems, share_problems, whole_problems
from accmt.collate_fns.columns import IDS, pad, pad_columns, read_columns, stack
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


@dataclass(frozen=True, eq=False)
class DataCollatorForLanguageModeling:
    """Pads tokenized samples to the longest of their batch and makes the `labels` of language modeling from them.

    With `mlm`, tokens are chosen at random with `mlm_probability`: never special tokens (also those with a 1 in the
    samples' `special_tokens_mask`) and never padding. Labels are the chosen tokens as they were, and `ignore_index`
    elsewhere, which is everywhere if chance chooses nothing. Of the chosen tokens, `masked_to_mask` become the mask
    token; the rest is halved between becoming a random word (uniformly any that is not special) and staying as it is.
    This is the scheme of BERT (Devlin et al., 2019, arXiv:1810.04805). Without `mlm`, labels are `input_ids`, not
    shifted, with `ignore_index` at padding.

    Random numbers come from torch's generator: a seed reproduces them. In a worker of a DataLoader it is the worker's.

    Samples and padding are as in `DataCollatorForSeq2Seq`, but at least one element of a sample is a dictionary with
    `input_ids`, its `labels`, if any, are replaced, and `special_tokens_mask` is taken out. An `attention_mask` is made
    where it is missing, since a model would take padding for text otherwise. Padding is what `attention_mask` gives
    as 0. Where it is missing, padding is what was added here, and pad tokens that were in a sample before, but these
    only if the pad token has no second use, such as the end of the text.

    Args:
        tokenizer: A tokenizer like those of Hugging Face, with a pad token, and a mask token for `mlm`.
        mlm: Masked language modeling; False for causal language modeling.
        mlm_probability: The share of tokens that are to be predicted, 0 to 1.
        ignore_index: The label of what is not to be predicted; losses ignore -100.
        masked_to_mask: The share of the chosen tokens that become the mask token, 0 to 1.
        apply_random_words: Whether half of the other chosen tokens become random words; otherwise all of them stay.
        force_one_output: Keep only the first element of samples that are tuples: the batch is one dictionary.

    Raises:
        ConfigError: An argument is wrong, or the tokenizer lacks what is needed.
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
        problems += flag_problems("mlm", self.mlm)
        problems += share_problems("mlm_probability", self.mlm_probability)
        problems += whole_problems("ignore_index", self.ignore_index)
        problems += share_problems("masked_to_mask", self.masked_to_mask)
        problems += flag_problems("apply_random_words", self.apply_random_words)
        problems += flag_problems("force_one_output", self.force_one_output)
        raise_problems(self, problems)

    def __call__(self, samples: Sequence[Any]) -> Any:
        """The batch of these samples: a dictionary, or a tuple if they are tuples and `force_one_output` is False.

        Raises:
            ValueError: They do not fit together, or they have no `input_ids`.
        """
        if self.force_one_output:
            samples = [sample[0] if is_composed(sample) and len(sample) > 0 else sample for sample in samples]
        require_tokenized(type(self).__name__, samples)
        return collate(samples, self._dictionaries, stack)

    def _dictionaries(self, dictionaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = {key: column for key, column in read_columns(dictionaries).items() if key != "labels"}
        padded = pad_columns(columns, padding_of(self.tokenizer, self.ignore_index))
        batch = {key: padded[key] if key in padded else stack(f"'{key}'", column) for key, column in columns.items()}
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
        """True where the padded `input_ids` of a batch, which were these sequences, are padding."""
        ids: Tensor = batch[IDS]
        mask: Tensor | None = batch.get("attention_mask")
        if mask is not None and mask.shape == ids.shape:
            return mask == 0
        side = padding_of(self.tokenizer, self.ignore_index).side
        added = pad([torch.zeros_like(sequence, dtype=torch.bool) for sequence in sequences], True, side).bool()
        return added | (ids == self.tokenizer.pad_token_id) if pad_token_is_only_padding(self.tokenizer) else added

    def _mask(self, ids: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """The ids with some of those that are not fixed replaced, and their labels."""
        chosen = (torch.rand(ids.shape, device=ids.device) < self.mlm_probability) & ~fixed
        labels = ids.masked_fill(~chosen, self.ignore_index)
        # One number per token decides what becomes of it: its interval from 0 to 1 is cut as the shares are.
        fate = torch.rand(ids.shape, device=ids.device)
        masked = chosen & (fate < self.masked_to_mask)
        ids = ids.masked_fill(masked, self.tokenizer.mask_token_id)
        if self.apply_random_words:
            replaced = chosen & ~masked & (fate < (1 + self.masked_to_mask) / 2)
            ids = torch.where(replaced, random_words(self.tokenizer, ids.shape).to(ids.device), ids)
        return ids, labels
