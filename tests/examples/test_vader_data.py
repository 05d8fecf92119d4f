"""The fetching of the demo's texts, from an index that these tests make themselves: no network."""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "examples" / "vader_data.py"

_spec = importlib.util.spec_from_file_location("vader_data", SOURCE)
vader_data = importlib.util.module_from_spec(_spec)
sys.modules["vader_data"] = vader_data
_spec.loader.exec_module(vader_data)

# The true one has a setup.py. This one builds with what it brings itself, as pip is to fetch nothing else here.
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, settings=None):
    name = "vaderSentiment-0.5.dist-info"
    Path(folder, name).mkdir()
    Path(folder, name, "METADATA").write_text("Metadata-Version: 2.1\\nName: vaderSentiment\\nVersion: 0.5\\n")
    return name

def build_wheel(folder, settings=None, metadata=None):
    raise NotImplementedError
"""


def packed(*members: tuple[tarfile.TarInfo | str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content) if info.isfile() else 0
            tar.addfile(info, io.BytesIO(content))
    file.seek(0)
    return file


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A source distribution with one text in each domain, which the module takes for the true one."""
    texts = [(f"hutto_ICWSM_2014/{name}", f"1\t0.5\tOf {name}.".encode()) for name in vader_data.FILES.values()]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(vader_data.INNER, packed(*texts).read())
        made.writestr("vaderSentiment-0.5/pyproject.toml", PYPROJECT)
        made.writestr("vaderSentiment-0.5/backend.py", BACKEND)
    monkeypatch.setattr(vader_data, "SHA256", hashlib.sha256(file.getvalue()).hexdigest())
    return file.getvalue()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which pip looks, and nowhere else; empty at first."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args, **kwargs):
        raise AssertionError(f"a process was started: {args}")

    monkeypatch.setattr(vader_data.subprocess, "run", run)


def refusal(error: type[BaseException], function: Callable[..., object], *args: object) -> str:
    """The words with which a function refuses its arguments."""
    with pytest.raises(error) as caught:
        function(*args)
    return str(caught.value)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def by_hand(folder: Path) -> str:
    return (
        "On a machine with network access, run\n"
        "    python -m pip download --no-deps --no-binary :all: vaderSentiment==0.5\n"
        f"and put vaderSentiment-0.5.zip, which it downloads, into {folder}\n"
        "(or into another folder, given with --data)."
    )


def test_parse():
    rows = vader_data.parse("1_1\t-0.9\tno picture.\r\n2\t3\twith a\ttab, and\x85no line end")
    assert rows == [("no picture.", -0.9), ("with a\ttab, and\x85no line end", 3.0)]
    assert rows[0].text == "no picture."
    assert rows[0].rating == -0.9


@pytest.mark.parametrize("line", ["", "1\t0.5", "1\tgood\ttext"])
def test_parse_refuses(line):
    message = refusal(ValueError, vader_data.parse, f"1\t0.5\tgood\r\n{line}\r\n3\t0.1\tso so")
    assert message == f"line 2 is not 'id<TAB>rating<TAB>text': {line!r}"


def test_read_tar():
    tar = packed((special("top", tarfile.DIRTYPE), b""), ("top/a.txt", b"a"), ("top/b.txt", b"b"), ("c.txt", b"c"))
    assert vader_data.read_tar(tar, ["a.txt", "c.txt"]) == {"a.txt": b"a", "c.txt": b"c"}


@pytest.mark.parametrize("name", ["../evil", "top/../../evil", "/etc/evil", "..\\evil", "C:/evil"])
def test_read_tar_refuses_names(name):
    message = refusal(ValueError, vader_data.read_tar, packed(("a.txt", b"a"), (name, b"")), ["a.txt"])
    assert message == f"the archive holds the name {name!r}, which may lead out of its folder"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_read_tar_refuses_kinds(kind):
    message = refusal(ValueError, vader_data.read_tar, packed((special("a.txt", kind, "/etc/passwd"), b"")), ["a.txt"])
    assert message == "the archive holds 'a.txt', which is neither a file nor a folder"


def test_read_tar_refuses_sizes(monkeypatch):
    monkeypatch.setattr(vader_data, "LARGEST", 10)
    message = refusal(ValueError, vader_data.read_tar, packed(("a.txt", b"12345"), ("b.txt", b"123456")), ["a.txt"])
    assert message == "the archive unpacks to more than 10 bytes"


def test_read_tar_misses():
    message = refusal(ValueError, vader_data.read_tar, packed(("a.txt", b"a")), ["a.txt", "b.txt", "c.txt"])
    assert message == "the archive lacks b.txt, c.txt"


def test_fetches_once(tmp_path, index, archive, request, capsys):
    (index / vader_data.ARCHIVE).write_bytes(archive)
    cache = tmp_path / "new" / "cache"
    texts = vader_data.rated_texts(cache)
    assert texts == {domain: [(f"Of {name}.", 0.5)] for domain, name in vader_data.FILES.items()}
    assert leftovers(cache) == [vader_data.ARCHIVE]
    assert capsys.readouterr().err == f"fetching vaderSentiment==0.5 into {cache}\n"

    request.getfixturevalue("no_pip")
    assert vader_data.rated_texts(cache) == texts
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("no_pip")
def test_takes_what_was_put_there(tmp_path, archive):
    (tmp_path / vader_data.ARCHIVE).write_bytes(archive)
    assert list(vader_data.rated_texts(tmp_path)) == ["tweets", "products", "movies", "news"]


def test_recovers_a_half_written_cache(tmp_path, index, archive, capsys):
    (index / vader_data.ARCHIVE).write_bytes(archive)
    half = tmp_path / vader_data.ARCHIVE
    half.write_bytes(archive[: len(archive) // 2])
    assert len(vader_data.rated_texts(tmp_path)) == 4
    assert half.read_bytes() == archive
    warning = f"{half} is not the archive that this example knows (sha256 {vader_data.SHA256})\n"
    assert capsys.readouterr().err == f"{warning}fetching vaderSentiment==0.5 into {tmp_path}\n"


def test_a_killed_fetch_leaves_no_archive(tmp_path, archive, monkeypatch):
    def killed(command, **kwargs):
        Path(command[-1], vader_data.ARCHIVE).write_bytes(archive[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(vader_data.subprocess, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        vader_data.rated_texts(tmp_path)
    assert leftovers(tmp_path) == []


def test_refuses_another_archive(tmp_path, index, archive):
    """pip compares the hash before it runs anything of the archive, so this setup.py is not run."""
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as made:
        made.writestr("vaderSentiment-0.5/setup.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    (index / vader_data.ARCHIVE).write_bytes(evil.getvalue())
    cache = tmp_path / "cache"
    message = refusal(SystemExit, vader_data.rated_texts, cache)
    assert message.startswith(
        "the texts cannot be fetched: pip failed\n    ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"
    )
    assert vader_data.SHA256 in message
    assert message.endswith(by_hand(cache))
    assert not (tmp_path / "ran").exists()
    assert leftovers(cache) == []


def test_believes_no_pip(tmp_path, monkeypatch):
    """A pip that ends well and brought something else."""

    def run(command, **kwargs):
        Path(command[-1], vader_data.ARCHIVE).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(vader_data.subprocess, "run", run)
    message = refusal(SystemExit, vader_data.rated_texts, tmp_path)
    assert message == f"the texts cannot be fetched: pip failed\n{by_hand(tmp_path)}"
    assert leftovers(tmp_path) == []


def test_no_network(tmp_path):
    """As a user sees it: a clear text on stderr, exit status 1, no traceback."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "1",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    program = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); import vader_data; vader_data.rated_texts()"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    cache = tmp_path / "accmt-examples"
    assert done.stderr == (
        f"fetching vaderSentiment==0.5 into {cache}\n"
        "the texts cannot be fetched: pip failed\n"
        "    ERROR: Could not find a version that satisfies the requirement vaderSentiment==0.5 (from versions: none)\n"
        "    ERROR: No matching distribution found for vaderSentiment==0.5\n"
        f"{by_hand(cache)}\n"
    )
    assert done.returncode == 1
    assert done.stdout == ""


@pytest.mark.usefixtures("no_pip")
def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    message = refusal(SystemExit, vader_data.rated_texts, folder)
    assert message.startswith("the texts cannot be fetched: ")
    assert message.endswith(by_hand(folder))
    assert message.count("\n") == by_hand(folder).count("\n") + 1


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "~/.cache"),
        ("linux", {"XDG_CACHE_HOME": "/else"}, "/else"),
        ("darwin", {}, "~/Library/Caches"),
        ("win32", {}, "~/AppData/Local"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local"),
    ],
)
def test_cache_folder(platform, variables, expected, monkeypatch):
    monkeypatch.setattr(vader_data.sys, "platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert vader_data.cache_folder() == Path(expected).expanduser() / "accmt-examples"
