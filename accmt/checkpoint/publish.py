"""Atomic publishing of a directory: under its name it is complete and verified, or absent.

A directory is written under a temporary name next to its target, every file is hashed and flushed to the disk, a
manifest is added, and a rename makes it visible. Files are flushed at the same time, because a disk that is asked to
flush several takes hardly longer than for one. A directory that is replaced or deleted is first renamed away, so that
no half-deleted one is ever visible either, and then deleted in the background. Where a rename is impossible (a
directory in a lower layer of an overlay, as in container images), it is copied, and its manifest is deleted first, so
that the rest does not pass as complete.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from accmt.files.durable import flush_directory, flush_file, only_warned
from accmt.files.foreign import is_file, is_folder
from accmt.files.json_io import DamagedFile, read_json, write_json
from accmt.rules import reserved_names as names
from accmt.rules.codec import Count, Jsonable
from accmt.rules.printable import escaped

MANIFEST = names.MANIFEST
TEMPORARY = names.TEMPORARY
TRASH = names.TRASH
REPLACED = names.REPLACED

# File systems allow 255 bytes per name: a target may have 240, as names here add at most 15.
_UNIQUE = 8
_REPLACED = re.compile(rf"{re.escape(REPLACED)}(.+)-[0-9a-f]{{{_UNIQUE}}}", re.DOTALL)

_BESIDE = re.compile(rf"{re.escape(MANIFEST)}|README\.md|\.gitattributes|\.cache/huggingface/.*", re.DOTALL)
"""Files that no manifest lists: itself, and what a hub of models keeps beside the files of one. Nothing reads them."""

_PIECE = 2**24
_LONGEST_MANIFEST = 2**24  # about 100,000 files
_SMALL = 2**16  # bytes that are hashed faster than another thread does it
# Threads.
_FLUSHES, _HASHES, _DELETES = 16, 4, 1
_CANNOT_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV, errno.ENOTTY})
_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256, in hexadecimal, of a published file."""

    size: Count
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest(Jsonable):
    """Content of a manifest: the other files of a directory by their relative names."""

    schema: Literal[1]
    files: Mapping[str, FileEntry]


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `target` at the end of the block, replacing a former one.

    If the block raises, or the process dies in it, `target` is unchanged. A failure after the directory has become
    `target` is a warning.

    Raises:
        ValueError: An entry of the directory is not a regular file, or has the manifest's name.
    """
    temporary, flushes = temporary_for(target), list[Future[None]]()
    try:
        yield temporary
        publish(temporary, target, describe(_contents(temporary).values(), flushes), flushes)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def require_writable(folder: Path) -> None:
    """Check before writing that directories can be published in a folder.

    Raises:
        OSError: They cannot; the message names the folder by its last name.
    """
    probe, renamed = (folder / _name(TEMPORARY, name) for name in ("probe", "renamed"))
    done = "added to"
    try:
        probe.mkdir()
        done = "renamed in"
        probe.rename(renamed)
        done = "deleted in"
        renamed.rmdir()
    except OSError as error:
        with suppress(OSError):
            probe.rmdir()
        text = f"nothing can be {done} '{folder.name}' ({error.strerror})"
        raise OSError(error.errno, text, str(folder)) from None


def temporary_for(target: Path) -> Path:
    """Create a temporary directory next to a target."""
    temporary = target.parent / _name(TEMPORARY, target.name)
    temporary.mkdir(parents=True)
    return temporary


def describe(files: Iterable[Path], flushes: list[Future[None]] | None = None) -> dict[Path, FileEntry]:
    """Flush files to the disk and return size and hash of each, working in threads while `files` yields more.

    With a list `flushes`, those still in progress are added to it instead of being waited for.

    Raises:
        ValueError: A file is a link, or otherwise not a regular file.
    """
    entries: dict[Path, FileEntry | Future[FileEntry]] = {}
    begun: list[Future[None]] = [] if flushes is None else flushes
    for path in files:
        if not is_file(path):
            raise ValueError(f"{path.name} is not a regular file: only those can be published")
        begun.append(_pool(_FLUSHES).submit(flush_file, path))
        entries[path] = _entry(path) if path.stat().st_size <= _SMALL else _pool(_HASHES).submit(_entry, path)
    if flushes is None:
        _wait(begun)
    return {path: each.result() if isinstance(each, Future) else each for path, each in entries.items()}


def publish(
    temporary: Path, target: Path, entries: Mapping[Path, FileEntry], flushes: Iterable[Future[None]] = ()
) -> None:
    """Add the manifest to a temporary directory and make it visible as `target`, replacing a former one.

    If it raises, `target` is unchanged; a failure after the replacement is a warning. `flushes` are those of the files
    that are still in progress.

    Raises:
        ValueError: One of the files has the manifest's name.
    """
    files = {path.relative_to(temporary).as_posix(): entry for path, entry in sorted(entries.items())}
    if MANIFEST in files:
        raise ValueError(f"{MANIFEST} is the name of the list of files: no file can have it")
    manifest = temporary / MANIFEST
    write_json(manifest, Manifest(1, files).to_json(), indent=1)
    pool = _pool(_FLUSHES)
    folders = [pool.submit(flush_directory, folder) for folder in _folders(temporary)]
    _wait([*flushes, pool.submit(flush_file, manifest), *folders])
    _put(temporary, target)


def end_threads() -> None:
    """Wait until what was replaced or removed is deleted, and end all threads; others start when they are needed."""
    for count in (_DELETES, _FLUSHES, _HASHES):
        _pool(count).shutdown()
    _pool.cache_clear()


def folder_problem(folder: Path, *, read: bool = True) -> str | None:
    """Describe why a published directory is not intact; None if it is.

    Names, file types and sizes are compared before any content is read; `read=False` stops there.
    """
    manifest = folder / MANIFEST
    if not is_folder(folder):
        return "it is not a directory"
    if not is_file(manifest):
        return f"it has no {MANIFEST}"
    if manifest.stat().st_size > _LONGEST_MANIFEST:
        return f"its {MANIFEST} is too long to be one"
    try:
        problem = next(_differences(folder, read_json(manifest, Manifest).files, read), None)
    except DamagedFile as error:
        return f"its {MANIFEST} cannot be read: {error.reason}"
    except OSError as error:
        problem = f"it cannot be read: {error}"
    return None if problem is None else escaped(problem)


def remove(folder: Path) -> None:
    """Delete a directory, in the background if it can be renamed, such that it is never visible half-deleted."""
    trash = folder.parent / f"{TRASH}{uuid.uuid4().hex}"
    try:
        folder.rename(trash)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _remove(folder, f"{folder.name} could not be deleted", False)
    else:
        _pool(_DELETES).submit(_remove, trash, f"{folder.name} was removed, but its files could not be deleted", False)


def move(source: Path, target: Path) -> None:
    """Rename, or copy to the disk and delete where a rename is impossible; `target` is complete or absent."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV or not is_folder(source):
            raise
        copy = target.parent / _name(TEMPORARY, target.name)
        try:
            shutil.copytree(source, copy, symlinks=True, copy_function=_copy_flushed)
            for folder in _folders(copy):
                flush_directory(folder)
            copy.rename(target)
        except BaseException:
            _delete(copy)
            raise
        flush_directory(target.parent)
        _delete(source)


def recover(parent: Path) -> None:
    """Clean up after a process that died; call it only while no other process can publish here.

    A directory that was renamed away for a replacement that never came is restored.
    """
    if not parent.is_dir():
        return
    for path in list(parent.iterdir()):
        if match := _REPLACED.fullmatch(path.name):
            target = parent / match[1]
            if _is_half_deleted(target, path):
                _delete(target)
            if os.path.lexists(target):
                _delete(path)
            else:
                move(path, target)
                flush_directory(parent)
        elif path.name.startswith((TRASH, TEMPORARY)):
            _delete(path)


def hash_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    # In large pieces: after each, the thread waits for the GIL, which a training loop holds most of the time.
    piece = memoryview(bytearray(min(_PIECE, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(piece):
            digest.update(piece[:size])
    return digest.hexdigest()


def _name(prefix: str, name: str) -> str:
    return f"{prefix}{name}-{uuid.uuid4().hex[:_UNIQUE]}"


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "flush")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, hash_of(path))


def _wait(flushes: Iterable[Future[None]]) -> None:
    for each in flushes:
        each.result()


def _put(temporary: Path, target: Path) -> None:
    former: Path | None = None
    if not os.path.lexists(target):
        temporary.rename(target)
    elif _exchange(temporary, target):
        former = temporary
    else:
        former = target.parent / _name(REPLACED, target.name)
        _replace(temporary, target, former)
    with only_warned(f"{target.name} is complete, but may not survive a power cut"):
        flush_directory(target.parent)
    if former is not None:
        otherwise = f"{target.name} is complete, but what it replaced could not be deleted"
        _pool(_DELETES).submit(_remove, former, otherwise, True)


def _remove(path: Path, otherwise: str, is_flushed: bool) -> None:
    """Delete what was renamed away, once that survives a power cut; warn if it is left."""
    with only_warned(otherwise):
        if not is_flushed:
            flush_directory(path.parent)
        _delete(path)
        if os.path.lexists(path):
            raise OSError(errno.EBUSY, f"{path.name} is left until the next start deletes it")


def _replace(temporary: Path, target: Path, former: Path) -> None:
    """Replace a directory in two steps; `recover` repairs it if the process dies between them."""
    try:
        move(target, former)
        temporary.rename(target)
    except BaseException:
        if os.path.lexists(former):
            if os.path.lexists(target):
                _delete(target)
            former.rename(target)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories atomically; False if the system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    failed = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) != 0
    code = ctypes.get_errno()
    if failed and code not in _CANNOT_EXCHANGE:
        raise OSError(code, os.strerror(code), str(second))
    return not failed


@cache
def _renameat2() -> Callable[..., int] | None:
    """Return the system's call, which only Linux has."""
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None


def _delete(path: Path) -> None:
    """Delete a file or directory; what cannot be deleted now is left to the next `recover`."""
    if is_folder(path):
        for manifest in [path / MANIFEST, *path.glob(f"*/{MANIFEST}")]:
            with suppress(OSError):
                manifest.unlink()
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_half_deleted(target: Path, former: Path) -> bool:
    """Return whether a process died while it deleted a directory of which `former` is a complete copy."""
    return target.is_dir() and not (target / MANIFEST).exists() and (former / MANIFEST).is_file()


def _copy_flushed(source: str, target: str) -> None:
    shutil.copyfile(source, target, follow_symlinks=False)
    flush_file(Path(target))


def _folders(folder: Path) -> list[Path]:
    """List a directory and all below it; the directory itself is last."""
    return [*(path for path in folder.rglob("*") if is_folder(path)), folder]


def _contents(folder: Path) -> dict[str, Path]:
    """Return name -> path of everything below a directory except directories."""
    found = (path for path in folder.rglob("*") if not is_folder(path))
    return {path.relative_to(folder).as_posix(): path for path in found}


def _differences(folder: Path, expected: Mapping[str, FileEntry], read: bool) -> Iterator[str]:
    found = {name: at for name, at in _contents(folder).items() if name in expected or not _BESIDE.fullmatch(name)}
    yield from (f"{name} is missing" for name in sorted(expected.keys() - found.keys()))
    yield from (f"{name} does not belong to it" for name in sorted(found.keys() - expected.keys()))
    for name, path in found.items():
        size = expected[name].size
        if not is_file(path):
            yield f"{name} is not a regular file"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    if read:
        for name, found_hash in zip(found, _pool(_HASHES).map(hash_of, found.values()), strict=True):
            if found_hash != expected[name].sha256:
                yield f"{name} is damaged: its content does not match its hash"
