"""Rated texts for the demo: fetched once with pip, kept in a cache folder, and verified by hash at every use.

The texts and their ratings are those of C.J. Hutto and Eric Gilbert, "VADER: A Parsimonious Rule-based Model for
Sentiment Analysis of Social Media Text", ICWSM 2014. The source distribution of vaderSentiment 0.5 (MIT licence)
contains them, as an archive within the archive. Nothing is unpacked to the disk: the cache is the file that pip
downloads, and the texts are read from it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

RELEASE = "vaderSentiment==0.5"
ARCHIVE = "vaderSentiment-0.5.zip"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = {
    "tweets": "tweets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
LARGEST = 32 * 2**20  # bytes, unpacked; the real archive has about 6 million

Corpus = dict[str, list["Rated"]]


class Rated(NamedTuple):
    """A text and the mean of its ratings, from -4 (extremely negative) to 4 (extremely positive)."""

    text: str
    rating: float


def rated_texts(folder: Path | None = None) -> Corpus:
    """Return the rated texts of each domain, and fetch them into a folder if they are not there yet.

    Args:
        folder: The folder for the archive; by default the user's cache.

    Raises:
        SystemExit: The texts are not there and cannot be fetched; the message says what to do.
    """
    folder = folder or cache_folder()
    archive = folder / ARCHIVE
    if not is_known(archive):
        try:
            fetch(folder)
        except OSError as error:
            raise SystemExit(f"the texts cannot be fetched: {error}\n{_by_hand(folder)}") from None
    with zipfile.ZipFile(archive) as outer, outer.open(INNER) as inner:
        contents = read_tar(inner, FILES.values())
    return {domain: parse(contents[name].decode()) for domain, name in FILES.items()}


def cache_folder() -> Path:
    """Return the folder of the examples in the user's cache folder on this system."""
    if sys.platform == "win32":
        caches = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        caches = "~/Library/Caches"
    else:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "accmt-examples"


def is_known(archive: Path) -> bool:
    """Return whether the archive exists and is, byte for byte, the one that this example was written for."""
    if not archive.is_file():
        return False
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def fetch(folder: Path) -> None:
    """Download the archive into a folder with pip, so that the user's index, proxy and certificates are used.

    It appears there complete or not at all.

    Raises:
        SystemExit: pip failed; the message contains pip's errors and how to fetch the archive by hand.
    """
    archive = folder / ARCHIVE
    if archive.exists():
        print(f"{archive} is not the archive that this example knows (sha256 {SHA256})", file=sys.stderr)
    print(f"fetching {RELEASE} into {folder}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        # pip runs the setup.py of a source distribution to read its metadata; given a hash, it verifies that first.
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(f"{RELEASE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", temporary]
        done = subprocess.run(pip, capture_output=True, text=True, errors="replace", check=False)
        fetched = Path(temporary, ARCHIVE)
        if done.returncode != 0 or not is_known(fetched):
            raise SystemExit(f"the texts cannot be fetched: pip failed{_complaint(done.stderr)}\n{_by_hand(folder)}")
        os.replace(fetched, archive)


def read_tar(packed: IO[bytes], wanted: Collection[str]) -> dict[str, bytes]:
    """Read some files of a packed tar, by their base names, in memory: no name in the archive becomes a path.

    Raises:
        ValueError: The archive contains something other than a plain tree of files (an absolute name, "..", a link, a
            device), is larger than `LARGEST`, or lacks a wanted file.
    """
    contents = {}
    size = 0
    with tarfile.open(fileobj=packed, mode="r|gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
                raise ValueError(f"the archive holds the name {member.name!r}, which may lead out of its folder")
            if not (member.isfile() or member.isdir()):
                raise ValueError(f"the archive holds {member.name!r}, which is neither a file nor a folder")
            size += member.size
            if size > LARGEST:
                raise ValueError(f"the archive unpacks to more than {LARGEST} bytes")
            file = tar.extractfile(member) if path.name in wanted else None
            if file is not None:
                contents[path.name] = file.read()
    if missing := sorted(set(wanted) - set(contents)):
        raise ValueError(f"the archive lacks {', '.join(missing)}")
    return contents


def parse(table: str) -> list[Rated]:
    """Parse a table `id<TAB>rating<TAB>text` with lines that end in CRLF.

    Raises:
        ValueError: A line has another format.
    """
    rows = []
    for number, line in enumerate(table.removesuffix("\r\n").split("\r\n"), start=1):
        try:
            _, rating, text = line.split("\t", maxsplit=2)
            rows.append(Rated(text, float(rating)))
        except ValueError:
            raise ValueError(f"line {number} is not 'id<TAB>rating<TAB>text': {line!r}") from None
    return rows


def _complaint(stderr: str) -> str:
    """Return pip's errors as an indented block, without its warnings, of which there is one for each retry."""
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    return "".join(f"\n    {line}" for line in lines)


def _by_hand(folder: Path) -> str:
    return (
        f"On a machine with network access, run\n"
        f"    python -m pip download --no-deps --no-binary :all: {RELEASE}\n"
        f"and put {ARCHIVE}, which it downloads, into {folder}\n"
        f"(or into another folder, given with --data)."
    )
