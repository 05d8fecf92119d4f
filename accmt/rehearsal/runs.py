"""The three runs of a rehearsal, each in its own process; nothing is changed in this one. Does not import torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread

from accmt.files.json_io import read_json
from accmt.rehearsal.findings import Rehearsal
from accmt.rules.reserved_names import TEMPORARY
from accmt.tracebacks import print_shortened

VARIABLE = "ACCMT_REHEARSE"
WHOLE, KILLED, RESUMED = "whole", "killed", "resumed"
_RUNS = {
    WHOLE: "a short training from scratch",
    KILLED: "the training resumed from its first checkpoint, and killed",
    RESUMED: "the training resumed again, and compared with the first run",
}
_LONGEST = 12_000  # characters of the output of a failed run


class RehearsalFailed(RuntimeError):
    """A run of a rehearsal failed; the message ends with its output."""


@dataclass(frozen=True, slots=True)
class Role:
    """Role of a process in a rehearsal: the run that it makes, and the folder for what the runs find."""

    run: str
    folder: str

    @property
    def found(self) -> Path:
        """The file of the findings."""
        return Path(self.folder, "found.json")

    def findings(self) -> Rehearsal | None:
        """Read the findings, if there are any yet."""
        return read_json(self.found, Rehearsal) if self.found.exists() else None

    def place(self, model_path: Path) -> Path:
        """Return the folder for the files of the trainings, on the file system of `model_path`."""
        above = next(path for path in (model_path, *model_path.parents) if path.is_dir())
        place = above / f"{TEMPORARY}{Path(self.folder).name}"
        Path(self.folder, "place").write_text(str(place), encoding="utf-8")
        return place


def role_in_rehearsal() -> Role | None:
    """Return the role of this process, if it was started for a rehearsal."""
    text = os.environ.get(VARIABLE)
    return None if text is None else Role(**json.loads(text))


def make_runs(start: Callable[[Role, Path], int], tell: Callable[[str], None]) -> Rehearsal:
    """Make the runs one after another, and delete all that they wrote, also after an error or Ctrl-C.

    Args:
        start: Makes a run in another process, with its output in a file; returns the status, negative for a signal.
        tell: Shows which run is made.

    Raises:
        RehearsalFailed: A run failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="accmt-rehearsal-"))
    try:
        for number, (run, words) in enumerate(_RUNS.items(), start=1):
            tell(f"rehearsal {number}/{len(_RUNS)}: {words}")
            role, log = Role(run, str(folder)), folder / f"{run}.log"
            status = start(role, log)
            found = role.findings()
            is_done = found is not None and (run == WHOLE or found.differences is not None)
            if status not in ((-signal.SIGKILL, 128 + signal.SIGKILL) if run == KILLED else (0,) * is_done):
                how = f"ended with status {status}" if status else "ended without a training"
                written = log.read_text(encoding="utf-8", errors="replace").strip()[-_LONGEST:]
                raise RehearsalFailed(f"{words}: the process {how}. Its output:\n{written or '(none)'}")
            if found is not None and (found.not_tried or found.differences is not None):
                break
        assert found is not None
        return found
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree((folder / "place").read_text(encoding="utf-8"), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def run_program(command: Sequence[str], role: Role, log: Path) -> int:
    """Make a run by starting a program."""
    variables = {**os.environ, VARIABLE: json.dumps(asdict(role))}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            return process.wait()
        finally:
            process.terminate()  # a launcher passes it on
            process.wait()


def run_fork(perform: Callable[[Role], None], role: Role, log: Path) -> int:
    """Make a run in a fork of this process."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # a fork would lose it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a process with several threads
        child = os.fork()
    if not child:
        # The main thread would wait for OpenMP's threads, which were not copied: another one gets its own.
        try:
            thread = Thread(target=end_process, args=(lambda: perform(role), log))
            thread.start()
            thread.join()
        finally:
            os._exit(1)  # nothing that follows belongs to the child
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def end_process(action: Callable[[], None], log: Path | None = None) -> None:
    """Do something, with the output in a file if one is given, and end the process: no other code runs after it."""
    status = 1
    try:
        if log is not None:
            sys.stdout = sys.stderr = log.open("w", encoding="utf-8", errors="backslashreplace")
            for number in (1, 2):
                os.dup2(sys.stdout.fileno(), number)
        action()
        status = 0
    except BaseException as error:
        print_shortened(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
