"""Collators for tokenized text: objects that make a batch from a list of samples.

Pass one to a trainer as `collate_fn` (or `collate_fn_train`, `collate_fn_val`), or to a DataLoader. They use the
attributes of their tokenizer and import no tokenizer library.
"""

from accmt.collate_fns.language_modeling import DataCollatorForLanguageModeling
from accmt.collate_fns.sequences import DataCollatorForLongestSequence, DataCollatorForSeq2Seq

__all__ = ["DataCollatorForLanguageModeling", "DataCollatorForLongestSequence", "DataCollatorForSeq2Seq"]
