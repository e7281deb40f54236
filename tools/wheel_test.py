"""Builds the wheel, installs it without extras in a clean environment, and runs the tests without the checkout.

    python -m tools.wheel_test [ARGUMENTS OF PYTEST]

Tests that need the repository are marked `checkout` and left out; tests that need an extra skip themselves.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tools.check_dist import problems

ROOT = Path(__file__).resolve().parents[1]
TEST_TOOLS = ["pytest", "hypothesis", "packaging"]


def main(arguments: list[str]) -> int:
    """Run the tests on the installed wheel and return their exit status; `arguments` are passed to pytest."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        source = temporary / "source"
        # Build from a copy: no stale build folder gets into the wheel, and none is left in the checkout.
        ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "*.pyd", "__pycache__")
        shutil.copytree(ROOT, source, ignore=ignored)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", temporary / "dist", source)
        (wheel,) = (temporary / "dist").glob("*.whl")
        if found := problems(wheel):
            raise SystemExit("\n".join(found))

        venv.create(temporary / "venv", with_pip=True)
        python = temporary / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", ROOT / "constraints.txt")
        run(*pip, wheel, *TEST_TOOLS)

        away = temporary / "away"
        shutil.copytree(ROOT / "tests", away / "tests", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", away)
        # Peers and the training extra are not installed here.
        required = {name for name in os.environ.get("PERCEIVERS_REQUIRE", "").split(",") if name} - {"peers", "training"}
        environment = {**os.environ, "PERCEIVERS_REQUIRE": ",".join(sorted(required))}
        command = [python, "-m", "pytest", "-q", "-m", "not checkout and not slow", *arguments]
        return subprocess.run(command, cwd=away, env=environment).returncode


def run(*command: object) -> None:
    """Run a command; raise if it fails."""
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
