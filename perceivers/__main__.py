"""`python -m perceivers`: the command line, see `perceivers.cli`."""

import sys

from perceivers.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
