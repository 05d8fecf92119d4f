"""Reports written to a file, once or after the evaluations of a training."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from accmt.files.durable import only_warned, replace_file
from accmt.report.training import TrainingReport, read_training
from accmt.rules.reserved_names import REPORT

_LIBRARIES = ("jinja2", "plotly")
_MOST_OF_TIME = 0.05


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written into a file, `path`; a notebook shows it in a frame, which cannot touch the rest."""

    path: Path

    def _repr_html_(self) -> str:
        page, style = html.escape(self.path.read_text(encoding="utf-8")), "width: 100%; height: 900px; border: 0"
        return f'<iframe sandbox="allow-scripts" title="Report" style="{style}" srcdoc="{page}"></iframe>'


class LiveReport:
    """The report of a training, written again after each evaluation; a failure is a warning."""

    def __init__(self, model_path: Path) -> None:
        self.path = model_path / REPORT
        self._took, self._written = 0.0, float("-inf")

    def update(self) -> None:
        """Write it, unless the last time it took too large a part of the time since then."""
        if self._took <= _MOST_OF_TIME * (time.monotonic() - self._written):
            self.finish()

    def finish(self) -> bool:
        """Write it, and return whether that worked."""
        began = time.monotonic()
        with only_warned(f"{self.path.name} was not written"):
            write_report([read_training(self.path.parent)], self.path)
            self._written = time.monotonic()
            self._took = self._written - began
            return True
        return False


def write_report(trainings: Sequence[TrainingReport], path: Path) -> Report:
    """Write the report of trainings atomically: a reader finds the former file or this one.

    Raises:
        IsADirectoryError: The path is a folder.
        OSError: It cannot be written.
        ModuleNotFoundError: A library is missing.
    """
    if missing := missing_libraries():
        raise ModuleNotFoundError(f"a report needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give a file, such as {path / REPORT}")
    from accmt.report.page import render

    replace_file(path, render(trainings))
    return Report(path)


def missing_libraries() -> list[str]:
    """Return the libraries that pages need and that are not installed."""
    return [name for name in _LIBRARIES if find_spec(name) is None]
