"""`perceivers fit PATH` and `perceivers pretrain PATH`: train in a folder, so that the run can be stopped and resumed."""

import sys
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from perceivers.cli.run_options import CONFIG, make_run, parse, run_parser, write_options
from perceivers.pretrained import PREPROCESSING
from perceivers.training.checkpoint import AtomicCheckpointIO
from perceivers.training.module import Training
from perceivers.training.pretrain import Pretraining
from perceivers.training.run import LAST, Run

HELP = """\
{usage}
PATH is a folder with one folder per class (of images, audio, videos or .txt files), a .csv, .parquet or .npz file, or
hub:NAME for a data set on the Hugging Face hub. The command first prints what it found and chose, with the options that
change it. The most useful options:

  --output FOLDER                     folder of the run (default: runs/NAME-1, 2, ...)
  --data.target COLUMN                column of a table to predict
  --trainer.max_epochs N              number of epochs
  --model.lr X, --data.batch_size N   learning rate, samples per step
  --model.network.dim N               width of the model; so for .num_latent_tokens and all other arguments of PerceiverIO
  --trainer.devices N                 number of GPUs
  --trainer.precision bf16-mixed      mixed precision, which needs less memory

A configuration file can import and run code: use only files from sources that you trust.
"""
USAGE = {
    "fit": """\
perceivers fit PATH [OPTIONS]      train on the data at PATH; all options have defaults
perceivers fit PATH --from FOLDER  start from the model that `perceivers pretrain` saved in FOLDER
perceivers fit --resume FOLDER     continue a run that was stopped
""",
    "pretrain": """\
perceivers pretrain PATH [OPTIONS]   learn from the data at PATH without labels; all options have defaults
perceivers pretrain --resume FOLDER  continue a run that was stopped
perceivers fit PATH --from FOLDER    then train on data with labels, starting from the FOLDER of the pretraining
""",
}


def main(arguments: list[str], command: Literal["fit", "pretrain"]) -> int:
    """Run `perceivers fit` or `perceivers pretrain`; return the exit status.

    Args:
        arguments: PATH, or `--resume FOLDER`, and options.
        command: "fit" or "pretrain".

    Raises:
        ValueError: If an argument is wrong, or the data cannot be read.
    """
    parser = run_parser(command, HELP.format(usage=USAGE[command]))
    parser.add_argument("path", metavar="PATH", nargs="?", type=str | None, help="folder or file with the data")
    parser.add_argument("--resume", metavar="FOLDER", type=str | None, help="folder of a run to continue")
    parser.add_argument("--from", metavar="FOLDER", type=str | None, help="folder of a pretrained model to start from")
    options, given = parse(parser, arguments, "resume")
    folder = _folder(options, given, command)
    if options["from"] is not None:
        options["model.init_from"] = options["from"]
        options["data.like"] = str(Path(options["from"]) / PREPROCESSING)
    if options.resume is not None:
        options["data.preprocessing"] = AtomicCheckpointIO().load_checkpoint(folder / LAST)["preprocessing"]
    run = make_run(parser, options, folder, Pretraining if command == "pretrain" else Training)
    again = f"perceivers {command} --resume {folder}"
    if options.resume is None and run.saved:
        raise ValueError(f"--output {folder} already holds a run: continue it with --resume {folder}, or give another folder")
    first = run.trainer.is_global_zero  # of several processes
    if first:
        write_options(parser, options, run)
        print("\n".join(describe(run)), flush=True)
    try:
        finished = run.fit(resume=options.resume is not None)
    except Exception:
        if first and run.saved:
            print(f"stopped by an error; to continue from the last checkpoint: {again}", file=sys.stderr)
        raise
    state, best = "done" if finished else "interrupted", run.best_metric()
    if first and run.saved:
        use = f"fit PATH --from {folder}" if command == "pretrain" else f"predict {folder} FILES..."
        print(f"\n{state}: the model is in {folder}{f', {best[0]} {best[1]:.4g}' if best else ''}")
        print(f"use it:    perceivers {use}")
        print(f"continue:  {again}{_longer(run) if finished else ''}")
    elif first:
        print(f"\n{state} before the first checkpoint: nothing was saved")
    return 0 if finished else 130


def _folder(options: Namespace, given: Namespace, command: str) -> Path:
    """Return the folder of a run, and check that PATH, --resume and --from fit each other."""
    resume, start = options.resume, options["from"]
    if resume is not None:
        if given.get("path") is not None or start is not None:
            raise ValueError(f"--resume {resume}: a resumed run keeps its data and weights: leave out PATH and --from")
        if not (Path(resume) / LAST).exists():
            raise ValueError(f"--resume {resume}: the run was stopped before its first checkpoint, {LAST}: start a new run")
        return Path(resume)
    if start is not None and command == "pretrain":
        raise ValueError(f"--from {start} is for fit, not pretrain: perceivers pretrain --resume {start} continues a run")
    if options.path is None:
        raise ValueError(f"PATH is missing: perceivers {command} PATH, or perceivers {command} --resume FOLDER")
    return Path(options.output) if options.output else new_folder(options.path)


def new_folder(path: str) -> Path:
    """Return the first of runs/NAME-1, 2, ... that does not exist."""
    name = Path(path.removeprefix("hub:")).stem or "run"
    number = 1
    while (Path("runs") / f"{name}-{number}").exists():
        number += 1
    return Path("runs") / f"{name}-{number}"


def describe(run: Run) -> list[str]:
    """Return what was found and chosen, and how to change it."""
    network, data, optimizer = run.module.network, run.data, run.module.optimizer_config
    size = sum(parameter.numel() for parameter in network.parameters())
    train, validation = len(data.rows["train"]), len(data.rows["validation"])
    given = "" if "validation" in data.found.splits else "  [--data.validation, --data.seed]"
    steps, epochs = run.trainer.max_steps, run.trainer.max_epochs or -1
    length = f"{steps} steps, in" if steps > 0 else str(epochs) if epochs > 0 else "any number of"
    return [
        *data.found.facts,
        f"train on {train:,}, validate on {validation:,}{given}",
        f"model: PerceiverIO of {size:,} parameters, {network.config['inputs']['kind']} inputs,"
        f" {network.config['num_latent_tokens']} latents of width {network.config['dim']}"
        "  [--model.network.dim, .num_latent_tokens, ...]",
        f"{length} epochs of {len(data.train_dataloader())} batches of {data.batch_size}"
        "  [--trainer.max_epochs, --data.batch_size]",
        f"{optimizer.optimizer}, learning rate {optimizer.lr:g}, {optimizer.schedule}"
        "  [--model.optimizer, --model.lr, --model.schedule]",
        f"folder: {run.folder}  [--output]; all options: {run.folder / CONFIG} and perceivers fit --help",
    ]


def _longer(run: Run) -> str:
    """Return the option that continues a run for as long again."""
    steps, epochs = run.trainer.max_steps, run.trainer.max_epochs or -1
    if steps > 0:
        return f" --trainer.max_steps {2 * steps}"
    return f" --trainer.max_epochs {2 * epochs}" if epochs > 0 else ""
