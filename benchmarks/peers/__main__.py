"""Creates the environments of the peers: `python -m benchmarks.peers [NAME ...]`, all of them without a name."""

import argparse
import subprocess
import venv

from benchmarks.peers import ENVIRONMENTS, MADE, PEERS, ROOT


def main() -> None:
    """Create the missing environments. If one fails, the others are created all the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PEERS))
    names = parser.parse_args().names or list(PEERS)
    if unknown := set(names) - set(PEERS):
        parser.error(f"{', '.join(sorted(unknown))}: not a peer, must be one of {', '.join(PEERS)}")
    failed = [name for name in names if not make(name)]
    if failed:
        raise SystemExit(f"not installed, see above: {', '.join(failed)}")


def make(name: str) -> bool:
    """Create one environment with this environment's version of PyTorch; return whether it is complete."""
    folder = ENVIRONMENTS / name
    if (folder / MADE).exists():
        return True
    venv.create(folder, clear=True, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-c", ROOT / "constraints.txt"]
    try:
        for arguments in ("torch numpy", *PEERS[name].installs):
            subprocess.run([*pip, *arguments.split()], check=True)
        subprocess.run([folder / "bin" / "python", "-c", f"import {PEERS[name].module}"], check=True)
    except subprocess.CalledProcessError as error:
        print(error)
        return False
    (folder / MADE).touch()
    return True


if __name__ == "__main__":
    main()
