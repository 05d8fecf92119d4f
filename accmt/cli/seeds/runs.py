"""The processes of `accmt seeds`: one for each seed, some at a time. Does not import torch.

What the command has to know before a run has started lies in `.accmt-seeds` in the current folder: for each script
with its arguments, which seeds have finished, and where their trainings lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from accmt.cli.arguments import CommandError
from accmt.cli.launch.hardware import cores, visible_gpus
from accmt.cli.output import complain, write
from accmt.files.durable import replace_file
from accmt.files.json_io import DamagedFile, read_json
from accmt.files.paths import shortened
from accmt.report.training import duration
from accmt.rules.printable import escaped
from accmt.rules.reserved_names import LOG, OUTPUT
from accmt.seed_run import FOLDERS, SEED
from accmt.tracking.step_log import ENDS, RESUMED, read_log

NOTES = ".accmt-seeds"
_TICK = 0.05
_LAST_LINES = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))  # Windows has no SIGHUP


@dataclass(frozen=True, slots=True)
class Program:
    """A script, or `launch`, with its arguments."""

    script: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The command that starts it; `accmt launch` itself has the script seeded."""
        seeded = ["-m", "accmt.cli.main"] if self.script == "launch" else ["-P", "-u", "-m", "accmt.cli.seeds.seeded"]
        return [sys.executable, *seeded, self.script, *self.arguments]

    @property
    def notes(self) -> Path:
        """The folder of what is known of its runs; another one after any change of the script."""
        digest = hashlib.sha256(json.dumps([self.script, *self.arguments]).encode())
        if self.script != "launch":
            digest.update(Path(self.script).read_bytes())
        return Path(NOTES, f"{Path(self.script).stem}-{digest.hexdigest()[:12]}").absolute()


@dataclass(frozen=True, slots=True)
class SeedOutcome:
    """A seed, whether its run is done, and the folders of its trainings."""

    seed: int
    is_done: bool
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class _Running:
    seed: int
    process: subprocess.Popen[bytes]
    log: Path
    told: Path
    started: float

    def folders(self) -> tuple[Path, ...]:
        """The folders of the trainings that it has begun."""
        lines = self.told.read_text("utf-8", "surrogateescape").splitlines() if self.told.exists() else []
        return tuple(map(Path, dict.fromkeys(lines)))


class _Asked:
    """Counts the signals that ask to end; `number` is the first one."""

    def __init__(self) -> None:
        self.number, self.times = 0, 0

    def take(self, number: int, frame: FrameType | None) -> None:
        self.number, self.times = self.number or number, self.times + 1


def run_seeds(program: Program, seeds: Sequence[int], jobs: int) -> tuple[list[SeedOutcome], int]:
    """Run a program once for each seed, and say what happens. Seeds that have finished before are skipped.

    A signal ends the runs as SIGTERM does, with a checkpoint; a third one kills them.

    Returns:
        What became of each seed, in order; and the signal that ended all, or 0.

    Raises:
        CommandError: The notes cannot be written.
    """
    try:
        program.notes.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{program.notes} cannot be written: {error.strerror}") from None
    found = {seed: _known(program, seed) for seed in seeds}
    for seed, outcome in found.items():
        if outcome.is_done:
            write(f"seed {seed}: skipped, it has finished in {_listed(outcome.folders)}")
    waiting = [seed for seed in seeds if not found[seed].is_done]
    slots: list[_Running | None] = [None] * min(jobs, max(len(waiting), 1))
    gpus = visible_gpus() if len(slots) > 1 and program.script != "launch" else []
    with _watched() as asked:
        sent = 0
        while any(slots) or (waiting and not asked.times):
            for number, running in enumerate(slots):
                if running is not None and running.process.poll() is not None:
                    found[running.seed] = _ended(program, running, is_asked=asked.times > 0)
                    slots[number] = None
                if slots[number] is None and waiting and not asked.times:
                    gpu = gpus[number % len(gpus)] if gpus else None
                    slots[number] = _start(program, waiting.pop(0), len(slots), gpu)
            if asked.times > sent:
                sent = asked.times
                for running in filter(None, slots):
                    _end(running.process, kills=sent > 2)
            time.sleep(_TICK)
    return list(found.values()), asked.number


def _known(program: Program, seed: int) -> SeedOutcome:
    """Return what is noted of a seed: it is done if its trainings still lie where they have finished."""
    note = program.notes / f"seed-{seed}.json"
    with suppress(OSError, DamagedFile):
        folders = tuple(map(Path, read_json(note, list[str])))
        return SeedOutcome(seed, all(map(_has_finished, folders)), folders)
    return SeedOutcome(seed, False)


def _has_finished(folder: Path) -> bool:
    ends = [line.event for line in read_log(folder / LOG) if line.event in (*ENDS, RESUMED)]
    return bool(ends) and ends[-1] == "FINISHED"


def _start(program: Program, seed: int, jobs: int, gpu: str | None) -> _Running:
    log, told = (program.notes / f"seed-{seed}.{name}" for name in ("log", "folders"))
    told.unlink(missing_ok=True)
    variables = {**os.environ, SEED: str(seed), FOLDERS: str(told)}
    if jobs > 1:
        variables.setdefault("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
    if gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpu
    with log.open("wb") as out:  # in a session of its own, Ctrl-C reaches it only as a signal from here
        process = subprocess.Popen(
            program.command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    write(f"seed {seed}: started, its output is in {shortened(log)}")
    sys.stdout.flush()
    return _Running(seed, process, log, told, time.time())


def _ended(program: Program, running: _Running, *, is_asked: bool) -> SeedOutcome:
    """Say how a run ended, note it if it is done, and put its output next to its training."""
    seed, status, folders = running.seed, running.process.returncode, running.folders()
    is_done = status == 0 and bool(folders) and all(map(_has_finished, folders))
    took = duration(time.time() - running.started)
    lines = running.log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
    log = _kept(running.log, folders)
    running.told.unlink(missing_ok=True)
    if is_done:
        replace_file(program.notes / f"seed-{seed}.json", json.dumps([str(folder) for folder in folders]))
        write(f"seed {seed}: finished in {took}{_resumed(folders, running.started)}, {_listed(folders)}")
    elif is_asked:
        write(f"seed {seed}: ended after {took}, {_listed(folders) or 'before a training'}")
    else:
        how = f"failed with status {status}" if status else "ended without a finished training"
        complain(
            "\n".join(
                [f"seed {seed}: {how} after {took}. The end of {shortened(log)}:", *(f"  {line}" for line in lines)]
            )
        )
    sys.stdout.flush()
    return SeedOutcome(seed, is_done, folders)


def _kept(log: Path, folders: Sequence[Path]) -> Path:
    """Append the output of a run to the file next to its first training, if there is one."""
    if not folders or not folders[0].is_dir():
        return log
    place = folders[0] / OUTPUT
    with place.open("ab") as file:
        file.write(log.read_bytes())
    log.unlink()
    return place


def _resumed(folders: Sequence[Path], since: float) -> str:
    """Say from where the trainings were resumed in this run."""
    lines = [line for folder in folders for line in read_log(folder / LOG)]
    steps = [line.step for line in lines if line.event == RESUMED and line.time >= since]
    return f" (resumed from step {', '.join(map(str, steps))})" if steps else ""


def _listed(folders: Sequence[Path]) -> str:
    return escaped(", ".join(str(shortened(folder)) for folder in folders))


@contextmanager
def _watched() -> Iterator[_Asked]:
    """Count signals in the block, except ignored ones, as under nohup."""
    asked = _Asked()
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, asked.take)
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes], *, kills: bool) -> None:
    """Ask a process to end, which a launcher passes on; or kill it and all that it started."""
    if not kills:
        process.terminate()
        return
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
