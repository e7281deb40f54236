"""The command `perceivers`, also `python -m perceivers`: train and use models, and see what is installed here."""

import argparse
import importlib
import sys

from perceivers import __version__

# What each command runs, imported only then: module, function, arguments before the user's.
COMMANDS = {
    "fit": ("perceivers.training.run", "fit", (), "train on what lies at PATH; --resume FOLDER goes on"),
    "pretrain": ("perceivers.training.run", "fit", ("pretrain",), "learn without labels what `fit --from FOLDER` begins with"),
    "validate": (
        "perceivers.training.run",
        "evaluate",
        ("validate",),
        "the metric of a run's model on its validation samples",
    ),
    "test": ("perceivers.training.run", "evaluate", ("test",), "the same on its test samples"),
    "predict": ("perceivers.cli.predict", "predict", (), "what a trained model says of new files"),
    "convert": ("perceivers.cli.convert", "main", (), "weights from one format to another"),
    "explain": ("perceivers.cli.predict", "explain", (), "where a trained model looks, as pictures"),
    "info": ("perceivers.cli.info", "main", (), "what is installed here (the default); info MODEL: what a model is"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 1 for what went wrong, 2 for wrong arguments, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="perceivers", description="The Perceiver family in PyTorch.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (*_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    commands.add_parser("models", help="print the models that create_model knows, with their sizes")
    arguments = arguments or ["info"]
    if arguments[0] in COMMANDS:
        return _run(arguments[0], arguments[1:])
    parser.parse_args(arguments)
    print("\n".join(_models()))
    return 0


def _run(command: str, arguments: list[str]) -> int:
    module, function, given, _ = COMMANDS[command]
    try:
        return getattr(importlib.import_module(module), function)(arguments, *given)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        print(f"perceivers {command} needs {error.name}, of its extra: pip install 'perceivers[train]'", file=sys.stderr)
        return 1
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"perceivers {command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _models() -> list[str]:
    import torch

    from perceivers import create_model, list_models

    lines = []
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        flops = model.flops()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        gigaflops = flops / 1e9
        shown = f"{gigaflops:.1f}" if gigaflops >= 1 else f"{gigaflops:.3f}"
        lines.append(f"{name:40} {parameters:>12,} parameters {shown:>8} GFLOPs")
    return lines


if __name__ == "__main__":
    sys.exit(main())
