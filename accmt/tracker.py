"""A module of earlier versions: importing it says what to write now."""

from accmt.earlier import refuse

refuse("tracker")
