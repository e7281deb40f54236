"""`perceivers pretrain`: masked self-pretraining of a run in a folder, with the options of `perceivers fit`."""

from perceivers.cli import fit


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return fit.main(arguments, "pretrain")
