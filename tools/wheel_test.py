"""Builds the wheel, installs it without extras in a clean environment, and runs the tests where no checkout is in sight.

What users install must be whole: tests that need the repository itself are left out by their marker, `checkout`, and those
that need a package of an extra skip themselves.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEST_TOOLS = ["pytest", "hypothesis", "packaging"]


def main(arguments: list[str]) -> int:
    """Returns the exit status of the tests; `arguments` go to pytest."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        source = temporary / "source"
        # A copy, so that neither stale build folders get into the wheel nor new ones into the checkout.
        hidden = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
        shutil.copytree(ROOT, source, ignore=hidden)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", temporary / "dist", source)
        (wheel,) = (temporary / "dist").glob("*.whl")
        check_names(wheel)

        venv.create(temporary / "venv", with_pip=True)
        python = temporary / "venv" / "bin" / "python"
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", ROOT / "constraints.txt")
        run(*pip, wheel, *TEST_TOOLS)

        away = temporary / "away"
        shutil.copytree(ROOT / "tests", away / "tests", ignore=hidden)
        shutil.copy(ROOT / "pyproject.toml", away)
        required = [
            name for name in os.environ.get("PERCEIVERS_REQUIRE", "").split(",") if name not in ("", "peers", "training")
        ]
        environment = {**os.environ, "PERCEIVERS_REQUIRE": ",".join(required)}
        command = [python, "-m", "pytest", "-q", "-m", "not checkout and not slow", *arguments]
        return subprocess.run(command, cwd=away, env=environment).returncode


def check_names(wheel: Path) -> None:
    """Fails where the wheel holds anything but the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if top != {"perceivers"}:
        raise SystemExit(f"{wheel.name} holds {sorted(top)}, not only perceivers: see packages in pyproject.toml")
    if "perceivers/py.typed" not in names:
        raise SystemExit(f"{wheel.name} lacks perceivers/py.typed")


def run(*command: object) -> None:
    """Runs a command, ending with its status where it fails."""
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
