"""The folder of a training that accmt does not run: its lock, its journals, and the files of an earlier training."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accmt.checkpoint import publish
from accmt.checkpoint.archive import archive_training
from accmt.checkpoint.folder_check import check_folders
from accmt.checkpoint.lock import Lock
from accmt.checkpoint.saved_models import savings_in
from accmt.config.errors import ConfigError, Problem
from accmt.integrations import processes
from accmt.loop.records import Records
from accmt.notices import warn
from accmt.rules import Decision, Observation, Outcome, RuleEngine
from accmt.tracking.training_file import Description, update_description, write_description

_in_use: weakref.WeakValueDictionary[Path, Journals] = weakref.WeakValueDictionary()  # the last ones of a folder


class Journals:
    """The journals in a folder, which only the main process writes. Nothing is written before `begin` or `resume`.

    Attributes:
        has_begun: The folder is locked, and holds this training.
    """

    def __init__(self, model_path: Path) -> None:
        self._path = model_path
        self._lock = Lock(model_path)
        self._records: Records | None = None
        self._is_closed = False
        weakref.finalize(self, self._lock.release)

    @property
    def has_begun(self) -> bool:
        return self._records is not None

    @property
    def is_open(self) -> bool:
        """True from the beginning of the training to its end."""
        return self.has_begun and not self._is_closed

    def begin(self, engine: RuleEngine) -> None:
        """Begin a training from scratch: the files of an earlier one are moved to `earlier-N`.

        Raises:
            ConfigError: The folder cannot be written.
            RuntimeError: Another training uses it.
        """
        records = self._opened(engine)

        def clear() -> Path | None:
            aside = archive_training(self._path, savings_in(self._path))
            records.steps.begin()
            write_description(self._path, Description(engine.rules, engine.facts, None))
            return aside

        if processes.acts():
            aside = processes.from_main(clear)
            if aside is not None and processes.is_main():
                warn(f"the files of the earlier training in {self._path} were moved to {aside}")
        for journal in records.journals:
            journal.cut(0)

    def resume(self, engine: RuleEngine, state: Mapping[str, Any], step: int, changes: list[str]) -> None:
        """Continue a training: cut the journals to where they were.

        Raises:
            ConfigError: The folder cannot be written.
            RuntimeError: Another training uses it.
            ValueError: It is not a state of journals.
        """
        records = self._opened(engine)
        records.check(state)
        lost = records.load_state_dict(state)
        description = Description(engine.rules, engine.facts, None, tuple(changes))
        if processes.acts():
            lost += processes.from_main(partial(update_description, self._path, description))
        records.steps.begin(step, "the state that was loaded")
        for line in lost:
            warn(line)

    def describe(self, engine: RuleEngine) -> None:
        """Write the description again, as the length of the training has become known."""
        if processes.acts():
            processes.from_main(partial(update_description, self._path, Description(engine.rules, engine.facts, None)))

    def observe(self, observation: Observation, held_out: Mapping[str, float]) -> None:
        """Record an evaluation, and the values that decide nothing."""
        records = self._open()
        records.observations.append(observation)
        _tell(records.append(observation))
        if held_out:
            records.steps.add_values(observation.progress.step, held_out)

    def decide(self, decision: Decision) -> None:
        """Record a decision."""
        records = self._open()
        records.decisions.append(decision)
        _tell(records.decision_log.append(decision.to_json()))
        for verdict in decision.verdicts:
            if verdict.outcome is Outcome.NAN and records.is_new(verdict.rule):
                warn(f"{verdict} at step {decision.progress.step}: it saves nothing until it is a number")

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the journals, all lines of which are on the disk then."""
        return self._open().state_dict()

    def end_interrupted(self) -> None:
        """Unlock the folder if an exception has ended another training in it, of this process."""
        other = _in_use.get(self._path)
        if other is not None and other is not self and other.is_open:
            other._open().flush()
            other._is_closed = True
            other._lock.release()

    def end(self, step: int, event: str, text: str) -> None:
        """Finish the journals and unlock the folder."""
        if self._records is not None and self.is_open:
            self._records.flush()
            self._records.steps.add_event(step, event, text)
        self._is_closed = True
        self._lock.release()

    def _open(self) -> Records:
        if self._records is None or not self.is_open:
            raise RuntimeError("these rules are closed: make new ones for another training")
        return self._records

    def _opened(self, engine: RuleEngine) -> Records:
        """Lock the folder, if everything in it can be written, and clean up after a process that died in it."""
        if self._is_closed:
            self._open()
        try:
            if processes.acts():
                processes.from_main(partial(self._occupy, engine))
        except OSError as error:
            problem = Problem("model_path", f"'{self._path}' cannot be written: {error.strerror or error}")
            raise ConfigError([problem], "Rules(...)") from None
        self._records = Records(self._path, writes=processes.is_main())
        _in_use[self._path] = self
        return self._records

    def _occupy(self, engine: RuleEngine) -> None:
        warning = self._lock.acquire()
        try:
            if warning is not None:
                warn(warning)
            check_folders(self._path, engine.rules, has_checkpoints=False)
            for folder in (self._path, *(self._path / rule.folder for rule in engine.rules.savings)):
                publish.recover(folder)
        except BaseException:
            self._lock.release()
            raise


def _tell(text: str | None) -> None:
    """Warn of a line that waits to be written."""
    if text is not None:
        warn(text)
