"""The command line `perceivers`: train and use models, and see what is installed.

Only this package prints and exits. A command's module is imported when the command is called.
"""

import argparse
import importlib
import signal
import sys

from perceivers import __version__

# Each command: module, arguments of its `main` after the user's, extra that it needs, help.
COMMANDS = {
    "fit": ("fit", ("fit",), "train", "train on the data at PATH; --resume FOLDER continues a run"),
    "pretrain": ("fit", ("pretrain",), "train", "pretrain on data without labels, for `fit --from FOLDER`"),
    "validate": ("validate", ("validate",), "train", "evaluate a run's model on its validation samples"),
    "test": ("validate", ("test",), "train", "evaluate a run's model on its test samples"),
    "predict": ("predict", (), "predict", "predict the labels of new files with a trained model"),
    "explain": ("explain", (), "predict", "draw what a trained model attends to"),
    "convert": ("convert", (), "onnx", "convert weights from one format to another"),
    "info": ("info", (), "train", "show what is installed (the default); info MODEL: describe a model"),
    "models": ("models", (), "train", "list the models that create_model knows, with their sizes"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for failures, 2 for wrong arguments, 130 for Ctrl-C.

    Args:
        arguments: Those after the program's name. Defaults to those of this process.
    """
    if arguments is not None:
        return _main(arguments)
    status = _main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process only has to end, and everything is saved
    return status


def _main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="perceivers", description="The Perceiver family in PyTorch.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (*_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    arguments = arguments or ["info"]
    if arguments[0] not in COMMANDS:
        parser.parse_args(arguments)  # prints help, the version, or what is wrong, and exits
    command, (module, given, extra, _) = arguments[0], COMMANDS[arguments[0]]
    try:
        return importlib.import_module(f"perceivers.cli.{module}").main(arguments[1:], *given)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        print(f"perceivers {command} needs {error.name}: pip install 'perceivers[{extra}]'", file=sys.stderr)
        return 1
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"perceivers {command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
