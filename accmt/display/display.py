"""Output of a training on the main process: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from accmt.display.console import PlainConsole
from accmt.display.lines import aligned, for_shell, sparkline, together, wrapped
from accmt.display.notebook import NotebookBar, notebook_shell
from accmt.rules import Decision, Observation
from accmt.rules.printable import shown
from accmt.rules.store import Values, dataset_name

_REFRESHES = 4
_RECENT = 120
_NATURAL = 1000  # columns of an output that is not a terminal: nothing in it is wrapped
# Not a terminal, whatever the streams of a kernel say, but with colours, and lines that a browser need not break.
_NOTEBOOK: dict[str, Any] = {"force_terminal": False, "force_jupyter": False, "color_system": "standard", "width": 110}
_SHORTEST_BAR, _LONGEST_BAR = 4, 40


@dataclass(frozen=True, slots=True)
class ShownPosition:
    """Position of a running training: optimizer steps done and in all (None if unknown), the epoch as it is shown, the
    time that this process has spent in steps alone, the learning rate (NaN if it is not at hand), and the time of
    training, with evaluations and checkpoints (0 if it is not known)."""

    step: int
    steps: int | None
    epoch: str
    seconds: float
    learning_rate: float = math.nan
    elapsed: float = 0.0

    @property
    def count(self) -> str:
        return str(self.step) if self.steps is None else f"{self.step}/{self.steps}"


@dataclass(frozen=True, slots=True)
class RuleResult:
    """Result of a rule: each objective with its value at each evaluation; the values, the moment and the folder of the
    best model (nothing, "" and None if none was saved); and its values on held-out datasets."""

    rule: str
    courses: Mapping[str, Sequence[float]]
    best: Mapping[str, float]
    when: str
    folder: Path | None
    held_out: Mapping[str, float] = field(default_factory=dict)


def display_of(*, is_main: bool, quiet: bool) -> Display:
    """Return the display of a process, which is also the only channel for warnings of a training.

    Python's `warnings` are not used: a filter that turns them into errors would raise on one process, in the middle of
    a collective operation, and the others would hang. So all processes continue alike, and the main process prints,
    including warnings from threads.
    """
    if not is_main:
        return Display()
    return QuietDisplay() if quiet else ConsoleDisplay()


class Display:
    """Interface through which the loop shows its progress. This one shows nothing: only the main process does."""

    def show(self, *renderables: RenderableType) -> None:
        """Print something as it is."""

    def warn(self, text: str) -> None:
        """Print a warning."""

    def describe(self, facts: Mapping[str, str], rules: Mapping[str, str], notes: Sequence[str]) -> None:
        """Show facts and rules of a training by name, before its first step, and the changes since the checkpoint."""

    def start(self, now: Callable[[], ShownPosition]) -> None:
        """Start the display of progress, which may ask at any time, from another thread, where the training is."""

    def logged(self, moment: ShownPosition, loss: float) -> None:
        """Show the mean loss of a logging interval that has ended."""

    def evaluated(self, observation: Observation, decision: Decision, seconds: float) -> None:
        """Show the results of an evaluation, the decision, and how long both took."""

    def held_out(self, names: Sequence[str], step: int, values: Values, seconds: float) -> None:
        """Show the values of a saved model on held-out datasets, and how long it took; rules may share the model."""

    def stop(self) -> None:
        """End the display of progress, however the loop ended."""

    def summarize(self, results: Sequence[RuleResult], model_path: Path, end: str) -> None:
        """Show what each rule has saved in the folder of a training, and why it ended."""


class QuietDisplay(Display):
    """Shows nothing but warnings."""

    def warn(self, text: str) -> None:
        ConsoleDisplay().warn(text)


class ConsoleDisplay(Display):
    """Shows a training on a console. The bar polls the position a few times per second, at no cost to the loop."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _Output(**(_NOTEBOOK if notebook_shell() else {}))
        self._bar: _Bar | NotebookBar | None = None
        self._speed = _Speed(2)

    def show(self, *renderables: RenderableType) -> None:
        for renderable in renderables:
            if self._console.is_terminal:
                self._console.print(renderable)
                continue
            for line in self._console.render_lines(renderable, self._console.options.update(width=_NATURAL), pad=False):
                self._console.print(Text("".join(segment.text for segment in line).rstrip()), soft_wrap=True)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}", "yellow")

    def describe(self, facts: Mapping[str, str], rules: Mapping[str, str], notes: Sequence[str]) -> None:
        widest = max(map(cell_len, facts), default=0) if self._width else 0
        for name, value in facts.items():
            label = f"{name:{widest}} " if self._width else f"{name}:"
            self._line(f"{label} {value}", bold=len(name), indent=widest + 2)
        for name, value in rules.items():
            self._line(f"{name}: {value}", bold=len(name) + 1)
        for note in notes:
            self._line(f"note: {note}", "yellow")

    def start(self, now: Callable[[], ShownPosition]) -> None:
        shell = notebook_shell()
        self._speed = speed = _Speed(_RECENT if self._console.is_terminal or shell else 2)
        speed.at(now())
        if self._console.is_terminal:
            self._bar = _Bar(self._console, now, speed)
        elif shell is not None:
            self._bar = NotebookBar(shell, lambda loss: _in_words(now(), loss, speed))
        if self._bar is not None:
            self._bar.start()

    def logged(self, moment: ShownPosition, loss: float) -> None:
        if self._bar is not None:
            self._bar.loss = loss
            return
        measured = _measured(moment, loss, self._speed)
        self._line("  ".join([f"epoch {moment.epoch}  step {moment.count}", *measured]))

    def evaluated(self, observation: Observation, decision: Decision, seconds: float) -> None:
        progress, values = observation.progress, _listed(observation.values)
        number = "before the first step" if observation.initial else f"{progress.evaluation} at step {progress.step}"
        if values:
            self._line(f"evaluation {number}  {values}  ({seconds:,.1f} s)")
        for verdict in decision.saved:
            self._line(f"  {verdict}", "green")
        if decision.stop is not None:
            self._line(f"  stop: {decision.stop.reason}", "bold")

    def held_out(self, names: Sequence[str], step: int, values: Values, seconds: float) -> None:
        rules = f"{'rule' if len(names) == 1 else 'rules'}: {', '.join(names)}"
        self._line(f"held out, model of step {step} ({rules})  {_listed(values)}  ({seconds:,.1f} s)")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def summarize(self, results: Sequence[RuleResult], model_path: Path, end: str) -> None:
        self._line("")
        self._line("Saved models", "bold")
        columns = [column for column in zip(*map(self._cells, results), strict=True) if any(column)]
        for line in aligned(list(zip(*columns, strict=True)), self._width):
            self._console.print(Text(line), soft_wrap=True)
        command = together(f"accmt explain {for_shell(model_path)}")
        self._line(f"every decision and its reason: {command}")
        self._line("")
        self._line(end, "bold")

    @property
    def _width(self) -> int | None:
        """Width of the terminal or the notebook; None for a pipe or a file."""
        return self._console.width if self._console.is_terminal or notebook_shell() else None

    def _cells(self, result: RuleResult) -> list[str]:
        ascii_only, parts = self._console.options.ascii_only, []
        for name, values in result.courses.items():
            best = f" {result.best[name]:.6g}" if name in result.best else ""
            parts.append(together(f"{name}{best} {sparkline(values, ascii_only=ascii_only)}".rstrip()))
        folder = "nothing was saved" if result.folder is None else for_shell(result.folder)
        held_out = ", ".join(together(f"{name} {value:.6g}") for name, value in result.held_out.items())
        cells = (result.rule, ", ".join(parts), f"held out: {held_out}" * bool(held_out), together(result.when), folder)
        return [shown(cell) for cell in cells]

    def _line(self, text: str, style: str = "", *, bold: int = 0, indent: int = 4) -> None:
        """Print one line, wrapped on a terminal only, so that programs can read it elsewhere."""
        line = Text(wrapped(shown(text), self._width, indent), style)
        line.stylize("bold", 0, bold)
        if isinstance(self._bar, _Bar):
            self._bar.refresh()
        self._console.print(line, soft_wrap=True)


class _Output(PlainConsole):
    """Console that ignores write errors: a full or closed output must not end a training."""

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _Bar:
    """One line that is drawn a few times per second: what has no room is left out, from its end."""

    def __init__(self, console: Console, now: Callable[[], ShownPosition], speed: _Speed) -> None:
        self.loss: float | None = None
        self._console, self._now, self._speed = console, now, speed
        self.live = Live(console=console, refresh_per_second=_REFRESHES, get_renderable=self._drawn)
        self.start, self.stop = self.live.start, self.live.stop

    def refresh(self) -> None:
        """Draw the bar as the training is now, so that a line does not stand above an older position."""
        with suppress(OSError):
            self.live.refresh()

    def _drawn(self) -> RenderableType:
        moment = self._now()
        texts = _texts(moment, self.loss, self._speed)
        epoch = f"epoch {moment.epoch}"
        room = self._console.width - cell_len(epoch) - 3
        while len(texts) > 1 and cell_len("  ".join(texts)) + _SHORTEST_BAR > room:
            texts.pop()
        width = max(1, min(_LONGEST_BAR, room - cell_len("  ".join(texts))))
        line = Table.grid(*(Column(no_wrap=True) for _ in range(3)), padding=(0, 1))
        line.add_row(Text(epoch), ProgressBar(moment.steps, moment.step, width=width), Text("  ".join(texts)))
        return line


class _Speed:
    """Steps per second, over the last moments at which the step had changed; and how long the rest of the steps takes,
    with the evaluations and checkpoints between them, at the pace of all the steps so far."""

    def __init__(self, moments: int) -> None:
        self._first: ShownPosition | None = None
        self._last: deque[ShownPosition] = deque(maxlen=moments)

    def at(self, moment: ShownPosition) -> float:
        """Return the speed at a moment; 0 while it is not known."""
        self._first = self._first or moment
        if not self._last or self._last[-1].step != moment.step:
            self._last.append(moment)
        first, last = self._last[0], self._last[-1]
        seconds = last.seconds - first.seconds
        return (last.step - first.step) / seconds if seconds > 0 else 0.0

    def left(self, moment: ShownPosition) -> str:
        """Return the time that the rest takes, in words; "" if it is not known."""
        if self._first is None or moment.steps is None or self._last[-1].step == self._first.step:
            return ""
        first, last = self._first, self._last[-1]
        took = max(last.elapsed - first.elapsed, last.seconds - first.seconds)
        return f", {_clock((moment.steps - moment.step) * took / (last.step - first.step))} left"


def _in_words(moment: ShownPosition, loss: float | None, speed: _Speed) -> tuple[int, int | None, str]:
    return moment.step, moment.steps, "  ".join([f"epoch {moment.epoch}", *_texts(moment, loss, speed)])


def _texts(moment: ShownPosition, loss: float | None, speed: _Speed) -> list[str]:
    """Return what a bar says besides the epoch, the most important first."""
    texts, rate = [moment.count, *_measured(moment, loss, speed)], moment.learning_rate
    return texts if math.isnan(rate) else [*texts, f"lr {rate:.3g}"]


def _measured(moment: ShownPosition, loss: float | None, speed: _Speed) -> list[str]:
    """Return the loss, the speed of steps, and the time that is left."""
    texts, now = [] if loss is None else [f"loss {loss:.4g}"], speed.at(moment)
    return [*texts, f"{_speed(now)}{speed.left(moment)}"] if now > 0 else texts


def _listed(values: Values) -> str:
    return "; ".join(f"{dataset_name(key, values)}: {_named(metrics)}" for key, metrics in values.items())


def _named(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _speed(steps_per_second: float) -> str:
    shown = f"{steps_per_second:,.0f}" if steps_per_second >= 10 else f"{steps_per_second:.2g}"
    return f"{shown} steps/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
