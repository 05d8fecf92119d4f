"""Profile of some optimizer steps, by torch.profiler: a table, and a trace of each process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch.profiler import profile, schedule

from accmt.display.display import Display
from accmt.files.paths import shortened
from accmt.notices import warn
from accmt.rules.reserved_names import PROFILE

_ROWS = 15


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """The first (from 2) and the last step to profile, counted from 1 in each run, and flags of torch's profiler."""

    first: int
    last: int
    flags: Mapping[str, Any]


class StepProfiler:
    """Profiler of a range of steps; the step before them is profiled too, and discarded."""

    def __init__(self, options: ProfileOptions, folder: Path, rank: int, display: Display) -> None:
        self._options, self._folder, self._rank, self._display = options, folder / PROFILE, rank, display
        self._profile: profile | None = None
        self._begin = self._step = 0

    def start(self, step: int) -> None:
        """Start before the first step of this run, after so many steps of the training."""
        first, last = self._options.first, self._options.last
        plan = schedule(wait=first - 2, warmup=1, active=last - first + 1, repeat=1)
        self._begin = step
        self._profile = profile(schedule=plan, on_trace_ready=self._report, **self._options.flags)
        self._profile.start()

    def stepped(self) -> None:
        """Count a step."""
        self._step += 1
        if self._profile is not None:
            self._profile.step()
            if self._step == self._options.last:
                self.close()

    def close(self) -> None:
        """End the profile; one of fewer steps than asked for is reported as it is."""
        ended, self._profile = self._profile, None
        if ended is None:
            return
        if self._step < self._options.last:
            asked = f"steps {self._options.first} to {self._options.last} of this run were asked for"
            warn(f"profile: {asked}, and it ended after {self._step}")
        ended.stop()

    def _report(self, ended: profile) -> None:
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        self._display.show(Text(ended.key_averages().table(sort_by=by, row_limit=_ROWS)))
        first, last = self._begin + self._options.first, self._begin + self._step
        path = self._folder / f"steps-{first}-{last}-rank-{self._rank}.json"
        try:
            self._folder.mkdir(exist_ok=True)
            ended.export_chrome_trace(str(path))
            self._display.show(Text(f"the trace of the profile is in {shortened(path)}"))
        except (OSError, RuntimeError) as error:
            warn(f"the trace of the profile could not be written: {error}")
