"""The wheel and the editable install hold the whole package, and importing it is cheap and does nothing."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest

from accmt import __version__
from accmt.integrations.loop import Rules as LoopRules

ROOT = Path(__file__).parent.parent


README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel of the tree, the sdist, and the wheel that is made of the sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = _copy(folder)
    _build(source, folder / "tree", "--wheel")
    _build(source, folder / "sdist")  # without an option: the sdist, and a wheel of it
    [wheel], [sdist] = (folder / "tree").iterdir(), (folder / "sdist").glob("*.tar.gz")
    [of_sdist] = (folder / "sdist").glob("*.whl")
    return SimpleNamespace(wheel=wheel, sdist=sdist, of_sdist=of_sdist)


@pytest.fixture
def wheel(built):
    return built.wheel


def _build(source, into, *options):
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", into, *options, source]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


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
    _commands_need_lark_alone(python, tmp_path)


def _commands_need_lark_alone(python, folder):
    """Those of rules and histories work; others say what is missing."""
    with LoopRules(folder / "model", "best_accuracy@dev", metrics={"accuracy": "max"}, datasets=["dev"]) as rules:
        rules.step()
        rules.save(rules.evaluated({"dev": {"accuracy": 0.5}}), lambda place: (place / "weights").touch())
    (folder / "rules.yaml").write_text("rules: {save: best_accuracy}")

    def run(*command):
        program = [python, "-m", "accmt.cli.main", *command]
        ran = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout + ran.stderr

    checked = run("check", "best_acuracy@dev", "--metric", "accuracy:max", "--dataset", "dev")
    assert checked[0] == 1
    assert checked[1].endswith("did you mean 'accuracy'?\n")
    shown = (
        "evaluation  step  epoch  rule               values  verdict  why\n"
        "1           1     0      best_accuracy@dev  0.5     saved    0.5 is the first, saved\n"
        "\n"
        "best_accuracy@dev: {}saved once; the best at the end is 0.5 of evaluation 1, at step 1\n"
    )
    assert run("explain", "model") == (0, shown.format("") + "no rule asked to stop\n")
    status, replayed = run("replay", "model")
    assert (status, replayed.startswith(shown.format("would have "))) == (0, True)
    assert replayed.endswith("these are the decisions that the training made\n")
    missing = "this needs {}, which is not installed: pip install {}\n"
    assert run("check", "--config", "rules.yaml") == (1, missing.format("yaml", "pyyaml"))
    assert run("checkpoints", "model") == (1, missing.format("rich", "rich"))


def _contents(wheel):
    """Each file of a wheel with its size and checksum."""
    with zipfile.ZipFile(wheel) as archive:
        return {file.filename: (file.file_size, file.CRC) for file in archive.infolist()}


def test_the_sdist_makes_the_same_wheel(built):
    assert _contents(built.of_sdist) == _contents(built.wheel)
    assert built.of_sdist.name == built.wheel.name == f"accmt-{__version__}-py3-none-any.whl"
    assert built.sdist.name == f"accmt-{__version__}.tar.gz"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment with accmt from the wheel of the sdist alone; what accmt needs is that of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built.of_sdist]
    subprocess.run(list(map(str, install)), cwd=folder, check=True, capture_output=True)
    packages = next((environment / "lib").glob("python*")) / "site-packages"
    # A path in such a file is only searched: the .pth files there, such as that of the editable install, are not read.
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def _run_in(environment, folder, *command):
    """Run a program of an environment, of whose packages nothing else tells it."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    program = [environment / "bin" / command[0], *command[1:]]
    ran = subprocess.run(program, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_quickstart_runs_where_only_the_package_is_installed(installed, tmp_path):
    """And the version is one, whoever is asked."""
    quickstart = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    asks = """
import importlib.metadata
print("installed", accmt.__file__, accmt.__version__, importlib.metadata.version("accmt"))
"""
    (tmp_path / "train.py").write_text("import accmt\n" + quickstart + asks)
    out = _run_in(installed, tmp_path, "python", "train.py")
    assert "held out, model of step" in out
    assert (tmp_path / "runs/quickstart/best_accuracy@dev/pytorch_model.bin").is_file()
    [(place, *versions)] = [line.split()[1:] for line in out.splitlines() if line.startswith("installed ")]
    assert Path(place).is_relative_to(installed)
    assert versions == [__version__, __version__]
    assert _run_in(installed, tmp_path, "accmt", "--version") == f"accmt {__version__}\n"


def test_the_extras_of_the_readme_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"\[([a-z,]+)\]['\" @]", README)
    assert named
    assert {extra for listed in named for extra in listed.split(",")} <= set(extras)


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
        ("accmt.trainer", ("mlflow", "transformers", "torchmetrics", "lark", "pydantic")),
    ],
)
def test_what_an_import_does_not_bring(imported, absent):
    code = f"import sys, {imported}; print([name for name in {absent!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
    assert ran.stderr == ""


def test_every_public_name_is_there():
    import accmt

    assert dir(accmt) == sorted(accmt.__all__)
    for name in accmt.__all__:
        assert getattr(accmt, name) is not None
    with pytest.raises(AttributeError, match="module 'accmt' has no attribute 'Trianer'"):
        accmt.Trianer  # noqa: B018  (the access is the test)


def test_only_public_names_are_listed():
    """Also once modules of the package are imported, which become its attributes."""
    code = (
        "import accmt, accmt.cli.main, accmt.rules; print([name for name in dir(accmt) if name not in accmt.__all__])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
    ran = subprocess.run([sys.executable, "-c", "import accmt; print(*dir(accmt))"], capture_output=True, text=True)
    assert {"Trainer", "load_saving", "__version__"} <= set(ran.stdout.split())
    assert not {"annotations", "earlier", "import_module", "NAMES"} & set(ran.stdout.split())
