"""A release is consistent: one version everywhere, the same Pythons everywhere, distributions that hold what they must."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import perceivers

pytest.importorskip("tools.check_dist", reason="needs the checkout")  # a wheel's tests are collected without it
from tools.check_dist import WHEEL, main, problems

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
pytestmark = pytest.mark.checkout


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pythons() -> list[str]:
    """The supported versions of Python, by the classifiers."""
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in pyproject()["project"]["classifiers"]]
    return [match[1] for match in found if match]


def test_one_version():
    assert pyproject()["project"]["dynamic"] == ["version"]
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == perceivers.__version__
    assert re.findall(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == [perceivers.__version__]


def test_supported_pythons():
    """The classifiers, the lower bound, hosted CI, the wheels and CONTRIBUTING name the same versions."""
    assert len(pythons()) >= 4
    allowed = SpecifierSet(pyproject()["project"]["requires-python"])
    oldest, newest = pythons()[0], pythons()[-1]
    assert oldest in allowed
    assert f"3.{int(oldest[2:]) - 1}" not in allowed
    matrix = re.search(r"^ +python-version: (\[.*\])", (WORKFLOWS / "ci.yml").read_text(), re.MULTILINE)[1]
    assert re.findall(r"3\.\d+", matrix) == pythons()
    wheels = pyproject()["tool"]["cibuildwheel"]["build"].split()
    assert wheels == [f"cp{version.replace('.', '')}-*" for version in pythons()]
    assert f"Python {oldest} to {newest}" in (ROOT / "CONTRIBUTING.md").read_text()


def test_actions_are_pinned():
    for workflow in WORKFLOWS.glob("*.yml"):
        for action in re.findall(r"uses: (\S+)", workflow.read_text()):
            assert re.fullmatch(r"[\w/-]+@(v\d+|release/v1)", action), (workflow.name, action)


def test_training_includes_what_prediction_needs():
    extras = pyproject()["project"]["optional-dependencies"]
    assert "perceivers[predict]" in extras["train"]


def test_every_folder_is_a_package():
    """A folder of modules without an `__init__.py` would be missing from the wheel."""
    folders = {file.parent for file in (ROOT / "perceivers").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_source_distribution(tmp_path):
    """It holds the C file and the tests, and nothing that lies beside the package in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    for folder in ("perceivers", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / file, source)
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    (tmp_path / "dist").mkdir()
    subprocess.run([sys.executable, "-c", code, tmp_path / "dist"], cwd=source, check=True, capture_output=True)
    (path,) = (tmp_path / "dist").iterdir()
    assert problems(path, perceivers.__version__) == []
    assert problems(path, "9.9.9") == [f"{path.name} is not version 9.9.9"]


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("linux_x86_64", ["perceivers/kernels/_separable.so"], None),
        ("win_amd64", [], None),
        ("linux_x86_64", [], "lacks the compiled kernel"),
        ("macosx_11_0_arm64", [], "lacks the compiled kernel"),
        ("win_amd64", ["tests/conftest.py"], "holds tests: only perceivers belongs there"),
    ],
)
def test_wheels(name, extra, message, tmp_path, capsys):
    path = tmp_path / f"perceivers-0.1.0-cp311-cp311-{name}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member in (*WHEEL, "perceivers-0.1.0.dist-info/METADATA", *extra):
            archive.writestr(member, "")
    assert main([str(path), "--version", "0.1.0"]) == (message is not None)
    assert (message or "no problems") in capsys.readouterr().out


def test_a_wheel_without_its_marker(tmp_path):
    path = tmp_path / "perceivers-0.1.0-cp311-cp311-win_amd64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("perceivers/__init__.py", "")
    assert problems(path) == [f"{path.name} lacks perceivers/py.typed"]
