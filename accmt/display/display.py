"""Output of a training on the main process: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from accmt.display.console import PlainConsole
from accmt.display.notebook import NotebookBar, notebook_shell
from accmt.rules import Decision, Observation
from accmt.rules import Progress as Counters
from accmt.rules.printable import shown

_REFRESHES = 4


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

    def start(self, step: Callable[[], int], total: int | None, elapsed: float = 0.0) -> None:
        """Start the display; `step` returns the current step, of `total`, after `elapsed` seconds in earlier runs."""

    def logged(self, progress: Counters, loss: float) -> None:
        """Show the mean loss of a logging interval that has ended."""

    def evaluated(self, observation: Observation, decision: Decision) -> None:
        """Show the results of an evaluation and the decision."""

    def stop(self) -> None:
        """End the display, however the loop ended."""


class QuietDisplay(Display):
    """Shows nothing but warnings."""

    def warn(self, text: str) -> None:
        ConsoleDisplay().warn(text)


class ConsoleDisplay(Display):
    """Shows a training on a console. The bar polls the step a few times per second, at no cost to the loop."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _output()
        self._bar: _Bar | NotebookBar | None = None
        self._total: int | None = None
        self._last = Counters()

    def show(self, *renderables: RenderableType) -> None:
        for renderable in renderables:
            self._console.print(renderable)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}", "yellow")

    def start(self, step: Callable[[], int], total: int | None, elapsed: float = 0.0) -> None:
        self._total = total
        self._last = Counters(step=step(), elapsed=elapsed)
        if self._console.is_terminal:
            self._bar = _Bar(self._console, step, total)
            self._bar.start()
        elif (shell := notebook_shell()) is not None:
            self._bar = NotebookBar(shell, lambda loss: (step(), total, _in_words(step(), total, loss)))
            self._bar.start()

    def logged(self, progress: Counters, loss: float) -> None:
        if self._bar is not None:
            self._bar.loss = loss
            return
        steps, seconds = progress.step - self._last.step, progress.elapsed - self._last.elapsed
        self._last = progress
        speed = steps / seconds if seconds > 0 else 0.0
        line = f"epoch {progress.epoch}  step {progress.step}"
        if self._total is not None:
            line += f"/{self._total}"
        line += f"  loss {loss:.4g}  {_speed(speed)}"
        if self._total is not None and speed > 0:
            line += f"  {_clock((self._total - progress.step) / speed)} left"
        self._line(line)

    def evaluated(self, observation: Observation, decision: Decision) -> None:
        progress = observation.progress
        values = "; ".join(f"{key}: {_named(metrics)}" for key, metrics in observation.values.items())
        number = "before the first step" if observation.initial else f"{progress.evaluation} at step {progress.step}"
        if values:
            self._line(f"evaluation {number}  {values}")
        for verdict in decision.saved:
            self._line(f"  {verdict}", "green")
        if decision.stop is not None:
            self._line(f"  stop: {decision.stop.reason}", "bold")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, text: str, style: str = "") -> None:
        """Print one line, wrapped on a terminal only, so that programs can read it elsewhere."""
        self._console.print(Text(shown(text), style), soft_wrap=not self._console.is_terminal)


class _Output(PlainConsole):
    """Console that ignores write errors: a full or closed output must not end a training."""

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _Bar(Progress):
    """A progress bar that reads the step whenever it is drawn."""

    def __init__(self, console: Console, step: Callable[[], int], total: int | None) -> None:
        self.loss: float | None = None
        self._step = step
        self._task: TaskID | None = None
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            _Loss(self),
            _Speed(),
            TimeRemainingColumn(),
        )
        super().__init__(*columns, console=console, refresh_per_second=_REFRESHES)
        self._task = self.add_task("training", total=total, completed=step())

    def get_renderables(self) -> Iterable[RenderableType]:
        if self._task is not None:
            self.update(self._task, completed=self._step())
        return super().get_renderables()


class _Loss(ProgressColumn):
    def __init__(self, bar: _Bar) -> None:
        self._bar_of = bar
        super().__init__()

    def render(self, task: Task) -> Text:
        loss = self._bar_of.loss
        return Text("" if loss is None else f"loss {loss:.4g}")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else _speed(task.speed))


def _in_words(step: int, total: int | None, loss: float | None) -> str:
    texts = [f"step {step}" if total is None else f"step {step}/{total}"]
    return "  ".join(texts if loss is None else [*texts, f"loss {loss:.4g}"])


def _named(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _speed(steps_per_second: float) -> str:
    shown = f"{steps_per_second:,.0f}" if steps_per_second >= 10 else f"{steps_per_second:.2g}"
    return f"{shown} steps/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _output() -> Console:
    """Return the console of this process: the actual width for a terminal, and a large one for a file or a notebook, so
    that no path is wrapped in it. A notebook is not a terminal, whatever its streams say, but shows colours."""
    if notebook_shell() is not None:
        return _Output(width=1000, force_terminal=False, force_jupyter=False, color_system="standard")
    return _Output(width=None if Console().is_terminal else 1000, soft_wrap=False)
