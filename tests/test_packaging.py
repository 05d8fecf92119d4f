"""The wheel and the editable install hold the whole package, and importing it is cheap and does nothing."""

import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(_copy(folder))],
        check=True,
        capture_output=True,
    )
    [path] = folder.glob("*.whl")
    return path


def _copy(folder):
    """The files that git knows or would know, so that the build leaves nothing in the checkout."""
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "accmt", "grammar", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in listed:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    return source


def test_the_listed_packages_are_those_in_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "accmt").rglob("__init__.py")}
    assert set(listed) == there | {"accmt.grammar"}


def test_the_wheel_works_in_an_empty_environment(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    data = {path for path in _copy(tmp_path).glob("accmt/**/*") if path.is_file() and path.suffix != ".py"}
    assert {str(path.relative_to(tmp_path / "source")) for path in data} <= set(names)
    assert {"accmt/grammar/rules.lark", "accmt/py.typed", "accmt/cli/launch/strategies/ddp.yaml"} <= set(names)
    environment = tmp_path / "empty"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    packages = next((environment / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    import lark

    (packages / "lark").symlink_to(Path(lark.__file__).parent)
    code = "from accmt.rules import parse_saving; print(parse_saving('accuracy@dev / f1'))"
    ran = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout == "best_accuracy@dev/f1\n", ran.stderr


def test_the_editable_install_finds_the_grammar():
    code = "from accmt.rules import parse_saving; print(parse_saving('accuracy'))"
    ran = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert ran.stdout == "best_accuracy\n"
    assert files("accmt.grammar").joinpath("rules.lark").is_file()


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("accmt", ("torch", "accelerate", "numpy", "lark")),
        ("accmt._compat", ("torch", "accelerate", "numpy", "transformers", "deepspeed")),
        ("accmt.cli.main", ("torch", "accelerate", "numpy")),
        ("accmt.rules", ("torch", "accelerate", "numpy", "lark")),
        ("accmt.trainer", ("mlflow", "transformers", "torchmetrics", "lark")),
    ],
)
def test_what_an_import_does_not_bring(imported, absent):
    code = f"import sys, {imported}; print([name for name in {absent!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
    assert ran.stderr == ""


def test_every_public_name_is_there():
    import accmt

    for name in accmt.__all__:
        assert getattr(accmt, name) is not None
        assert name in dir(accmt)
    with pytest.raises(AttributeError, match="module 'accmt' has no attribute 'Trianer'"):
        accmt.Trianer  # noqa: B018  (the access is the test)
