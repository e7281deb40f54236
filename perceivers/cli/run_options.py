"""The options of a run: the parser that `fit`, `pretrain`, `validate` and `test` share, and the objects that options make.

A configuration file can import and run code: it must come from a trusted source.
"""

import argparse
from pathlib import Path

import lightning.pytorch.callbacks
import lightning.pytorch.loggers  # noqa: F401 so that --trainer.callbacks and .logger take the names of their classes
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace  # pyright: ignore[reportPrivateImportUsage]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from perceivers._atomic import replacing
from perceivers.training.datamodule import PathData
from perceivers.training.module import Training
from perceivers.training.pretrain import Pretraining
from perceivers.training.run import Run

CONFIG = "run.yaml"


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help whose first lines are left as they are."""


def run_parser(command: str, description: str) -> ArgumentParser:
    """Return the parser of a run's options; the caller adds its positional arguments.

    Args:
        command: "fit", "pretrain", "validate" or "test".
        description: The first lines of its help.
    """
    parser = ArgumentParser(
        prog=f"perceivers {command}", description=description, formatter_class=HelpFormatter, usage="%(prog)s [OPTIONS]"
    )
    parser.add_argument("--output", metavar="FOLDER", type=str | None, help="folder of the run (default: runs/NAME-N)")
    parser.add_argument("--every", metavar="N", type=int, default=200, help="steps between checkpoints")
    parser.add_argument(
        "--ema", metavar="X", type=float | None, help="decay of a moving average of the weights, such as 0.999"
    )
    parser.add_argument("--config", metavar="FILE", action=ActionConfigFile, help="YAML file with options")
    module = Pretraining if command == "pretrain" else Training
    parser.add_class_arguments(module, "model", skip={"preprocessing"}, instantiate=False)
    parser.add_class_arguments(PathData, "data", skip={"path"}, instantiate=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    if command == "pretrain":
        parser.set_defaults({"data.task": "pretraining"})
    return parser


def parse(parser: ArgumentParser, arguments: list[str], folder_option: str) -> tuple[Namespace, Namespace]:
    """Parse arguments, over the options of the run in the folder that one of them names, if any.

    Args:
        parser: The parser.
        arguments: The arguments.
        folder_option: Name of the argument that names the folder of an existing run.

    Returns:
        All options, and those that the arguments give.

    Raises:
        ValueError: If the folder does not hold a run.
    """
    given = parser.parse_args(arguments, defaults=False)
    folder = given.get(folder_option)
    if folder is None:
        options = parser.get_defaults()
    elif not (Path(folder) / CONFIG).exists():
        raise ValueError(f"{folder} does not hold a run, as it has no {CONFIG}: give the folder that perceivers fit wrote")
    else:
        options = parser.parse_path(str(Path(folder) / CONFIG))
    for name, value in vars(given.as_flat()).items():
        if value is not None or name not in options:  # a positional argument that is not given is None
            options[name] = value
    return options, given


def make_run(parser: ArgumentParser, options: Namespace, folder: Path, module: type[Training | Pretraining]) -> Run:
    """Make the data, the model and the trainer of options.

    Raises:
        ValueError: If an option is out of range, options exclude each other, or the data cannot be read.
    """
    data = PathData(options.path, **options.data.as_dict())
    trainer = parser.instantiate(options).trainer.as_dict()
    try:
        model = module(preprocessing=data.preprocessing.describe(), **options.model.as_dict())
        return Run(folder, model, data, every=options.every, ema=options.ema, trainer=trainer)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def write_options(parser: ArgumentParser, options: Namespace, run: Run) -> None:
    """Write `run.yaml`: the options of a run with everything that was chosen, so that it can be resumed from any folder."""
    chosen = options.clone()
    path = Path(options.path)
    changes = {
        "path": str(path.resolve()) if path.exists() else options.path,
        **dict.fromkeys(("resume", "from", "output", "config")),  # the folder may be moved
        **dict.fromkeys(("data.like", "data.preprocessing")),  # checkpoints hold the preprocessing
        "model.network": run.module.network.config,
        "data.batch_size": run.data.batch_size,
        "trainer.max_epochs": run.trainer.max_epochs,
        "trainer.gradient_clip_val": run.trainer.gradient_clip_val,
        **({"model.init_from": None} if "model.init_from" in options else {}),  # from here on the weights are the run's own
    }
    for name, value in changes.items():
        chosen[name] = value
    with replacing(run.folder / CONFIG) as file:
        file.write(parser.dump(chosen).encode())
