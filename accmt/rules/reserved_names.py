"""Names of the files and folders that a training writes into its `model_path`; rules may not use them.

All code that writes there takes its names from here, so that a user's name never collides with ours.
"""

from __future__ import annotations

import unicodedata

LOCK = ".lock"
CHECKPOINTS = "checkpoints"
OUTBOX = "outbox"
PROFILE = "profile"
HISTORY = "history.jsonl"
DECISIONS = "decisions.jsonl"
REPLICATES = "replicates.jsonl"
TRAINING = "training.json"
RUN = "run.json"
LOG = "log.jsonl"
REPORT = "report.html"
OUTPUT = "output.log"
TEMPORARY = ".tmp-"
TRASH = ".trash-"
REPLACED = ".old-"
EARLIER = "earlier-"  # followed by a number

# In the folder of a model or a checkpoint; a training that finds one in its own folder takes the folder for a model.
MANIFEST = "MANIFEST.json"
SAVING = "saving.json"
SAVINGS = "index.json"

_JOURNALS = (HISTORY, DECISIONS, REPLICATES, TRAINING, RUN, LOG, REPORT, OUTPUT)
_TAKEN = (LOCK, CHECKPOINTS, OUTBOX, PROFILE, *_JOURNALS, MANIFEST, SAVING, SAVINGS)
_TAKEN_BEGINNINGS = (TEMPORARY, TRASH, REPLACED)


def is_taken(name: str) -> bool:
    """Return whether a training uses the name, or one that some file system treats as the same."""
    same = as_on_disk(name)
    is_earlier = same.startswith(EARLIER) and same.removeprefix(EARLIER).isdigit()
    return is_earlier or same in map(as_on_disk, _TAKEN) or same.startswith(_TAKEN_BEGINNINGS)


def as_on_disk(name: str) -> str:
    """Return a text that is equal for two names if some file system treats them as the same: most of macOS and Windows
    ignore case and the composition of characters, and some drop dots and spaces at the end."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).rstrip(". ")
