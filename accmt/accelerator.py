"""Module of an earlier version: importing it fails with a hint on what to write now."""

from accmt.earlier import refuse

refuse("accelerator")
