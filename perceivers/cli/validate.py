"""`perceivers validate FOLDER` and `perceivers test FOLDER`: the metrics of a run's model."""

from pathlib import Path
from typing import Literal

from perceivers.cli.run_options import make_run, parse, run_parser
from perceivers.data.preprocessing import PRETRAINING, Preprocessing
from perceivers.pretrained import PREPROCESSING
from perceivers.training.module import Training

HELP = """\
perceivers {stage} FOLDER [PATH]  evaluate the model of the run in FOLDER on its own data, or on the data at PATH
"""


def main(arguments: list[str], stage: Literal["validate", "test"]) -> int:
    """Run the command; return the exit status.

    Raises:
        ValueError: If FOLDER does not hold a run, or the data cannot be read.
    """
    parser = run_parser(stage, HELP.format(stage=stage))
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=str | None, help="folder of a run")
    parser.add_argument("path", metavar="PATH", nargs="?", type=str | None, help="other data (default: those of the run)")
    options, _ = parse(parser, arguments, "folder")
    if options.folder is None:
        raise ValueError(f"FOLDER is missing: perceivers {stage} FOLDER [PATH], with the folder of a run")
    folder = Path(options.folder)
    if not (folder / PREPROCESSING).exists():
        raise ValueError(f"FOLDER {folder}: there is no model in it yet: perceivers fit --resume {folder}")
    if Preprocessing.load(folder / PREPROCESSING).task == PRETRAINING:
        raise ValueError(f"FOLDER {folder} holds a pretrained model without labels: perceivers fit PATH --from {folder}")
    options["data.preprocessing"] = str(folder / PREPROCESSING)
    options["trainer.logger"] = options["trainer.enable_progress_bar"] = False
    run = make_run(parser, options, folder, Training)
    if run.trainer.is_global_zero and stage == "test" and "test" not in run.data.found.splits:
        print("there are no test samples: evaluating on the validation samples")
    found = run.evaluate(stage)
    if run.trainer.is_global_zero:
        print("\n".join(f"{name} {value:.4g}" for name, value in found.items()))
    return 0
