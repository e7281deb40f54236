"""Run the tests of the C kernel under AddressSanitizer and UndefinedBehaviorSanitizer (`make sanitize`).

Builds the kernel with both in a temporary folder, where a copy of the package runs its tests with the sanitizers'
libraries loaded first; any report ends the run. Needs gcc with its sanitizers.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
KERNEL_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-pthread", "-Wno-psabi", "-shared", "-fPIC"]


def main() -> None:
    """Build, then test."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("perceivers", "tests", "pyproject.toml"):
            source, target = ROOT / name, copy / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "_separable.*.so"))
            else:
                shutil.copy(source, target)
        kernel = copy / "perceivers/kernels"
        library = kernel / f"_separable{sysconfig.get_config_var('EXT_SUFFIX')}"
        source = kernel / "separable.c"
        subprocess.run(["gcc", *FLAGS, *KERNEL_FLAGS, str(source), "-o", str(library), "-lm"], check=True)
        preload = " ".join(
            subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
            for name in ("libasan.so", "libubsan.so")
        )
        # Python and PyTorch leak by design at exit; a sanitizer's abort fails the run.
        environment = os.environ | {
            "LD_PRELOAD": preload,
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": str(copy),
            "PERCEIVERS_REQUIRE": "kernel",
        }
        tests = ["tests/ops/cross_attention/test_kernel.py", "tests/ops/cross_attention/test_separable.py"]
        # A child forked while another thread is inside AddressSanitizer's allocator waits for it forever.
        selected = ["-m", "not slow", "--deselect", f"{tests[0]}::test_calls_after_fork"]
        command = [sys.executable, "-m", "pytest", "-q", *selected, "-p", "no:cacheprovider", *tests, *sys.argv[1:]]
        sys.exit(subprocess.run(command, cwd=copy, env=environment).returncode)


if __name__ == "__main__":
    main()
