"""docs/reference/files.md: every file that a training writes is on the page."""

from pathlib import Path

from accmt.checkpoint.saved_models import AVERAGE, AVERAGE_RECORD
from accmt.cli.seeds.runs import NOTES
from accmt.rules import reserved_names as names

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "files.md"


def test_every_file_is_listed():
    text = PAGE.read_text("utf-8")
    journals = (names.HISTORY, names.DECISIONS, names.REPLICATES, names.TRAINING, names.RUN, names.LOG, names.REPORT)
    written = (*journals, names.OUTPUT, names.MANIFEST, names.SAVING, names.SAVINGS, AVERAGE, AVERAGE_RECORD, NOTES)
    written += ("held_out", "average_of")
    listed = [name for name in written if f"`{name}" in text or f"\n  {name} " in text]
    assert listed == list(written)
