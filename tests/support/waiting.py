"""What waits in the outbox of a training that is over, as `accmt sync` says it to someone who names no place."""

import os
import re
from unittest import mock

from accmt.tracking.sync import send_waiting

LINE = re.compile(r"(.+?) at .*: still waiting: (.*); it is not sent, as ", re.DOTALL)


def waiting_in(model_path):
    """Tracker -> what waits for it, in words; empty if nothing does."""
    with mock.patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        found = [LINE.match(told) for told in send_waiting(model_path, 0)]
    return {line[1]: "" if line[2] == "nothing" else line[2] for line in found if line}


def count_in(waiting):
    """The number of values, and their last step; 0 if there are none."""
    found = re.match(r"([\d,]+) values? \(steps? (?:\d+ to )?(\d+)\)", waiting)
    return (int(found[1].replace(",", "")), int(found[2])) if found else (0, 0)
