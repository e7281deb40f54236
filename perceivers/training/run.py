"""`perceivers fit`, `validate` and `test`: a run in a folder, on Lightning's Trainer and command line.

A run's folder holds `run.yaml` (the whole configuration), `last.ckpt` and `best.ckpt` (to go on from, and the best so far),
`metrics.csv`, `curves.png`, `tensorboard/`, and the model in this library's format with `preprocessing.json`. A
configuration names classes that are imported: it is code, use only your own.
"""

import atexit
import csv
import logging
import math
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from perceivers._atomic import replacing, sweep
from perceivers.perceiver_io import PerceiverIO
from perceivers.pretrained import PREPROCESSING
from perceivers.training.checkpoint import AtomicCheckpointIO
from perceivers.training.datamodule import PathData
from perceivers.training.module import METRICS, Trained, Training
from perceivers.training.pretrain import Pretraining
from perceivers.training.progress import Progress

HELP = """\
perceivers {name} PATH [OPTIONS]      train on what lies at PATH; no option is needed
perceivers {name} --resume FOLDER     go on with a run that was stopped
{more}
PATH is a folder with a folder a class (of pictures, sounds, videos or .txt files), a .csv, .parquet or .npz file, a set that
`perceivers data prepare NAME` fetched, or hub:NAME. What was found and chosen is said first, with the option that changes it.
The options that are wanted most, before all others:

  --output FOLDER                     where the run goes (default: runs/NAME-1, 2, ...)
  --data.target COLUMN                what of a table is to be predicted
  --trainer.max_epochs N              how often the data are gone through
  --model.lr X, --data.batch_size N   learning rate, samples of a step
  --model.network.dim N               width of the model; .num_latent_tokens and all other arguments of PerceiverIO likewise
  --trainer.devices N                 GPUs; --trainer.precision bf16-mixed: half the memory
"""
MORE = {
    "fit": "perceivers fit PATH --from FOLDER  begin with what `perceivers pretrain` left in FOLDER\n",
    "pretrain": "perceivers fit PATH --from FOLDER      what comes next, with the FOLDER that this leaves\n",
}
CONFIG, LAST, BEST = "run.yaml", "last.ckpt", "best.ckpt"
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 2000, 10, 200  # what is trained where nothing is said


class Command(LightningCLI):
    """Parses a run: what lies at PATH, the model and Lightning's Trainer."""

    def __init__(self, args: ArgsType, module: type[Trained] = Training) -> None:
        self.trained = module
        with warnings.catch_warnings():  # of arguments that come from elsewhere than the command line
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            self._parse(args)

    def _parse(self, args: ArgsType) -> None:
        super().__init__(
            self.trained,
            PathData,
            args=args,
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            parser_kwargs={
                "prog": "perceivers fit" if self.trained is Training else "perceivers pretrain",
                "description": "A configuration names classes that are imported: it is code, use only your own.",
                "usage": "%(prog)s [OPTIONS]",
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what Lightning does not have, and takes the preprocessing from the data."""
        parser.add_argument("--output", type=str | None, default=None, help="folder of the run (default: runs/NAME-1, 2, ...)")
        parser.add_argument("--every", type=int | None, default=None, help="steps between checkpoints (default: 200)")
        parser.add_argument("--ema", type=float | None, default=None, help="decay of an average of the weights, such as 0.999")
        parser.link_arguments("data.description", "model.preprocessing", apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the Trainer, with the number of epochs and what a run keeps."""
        config, batches = self.config, len(self.datamodule.train_dataloader())
        if config.trainer.max_epochs is None and config.trainer.max_steps == -1 and config.trainer.max_time is None:
            config.trainer.max_epochs = self.config_init["trainer"]["max_epochs"] = min(
                MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / batches))
            )
        if config.trainer.gradient_clip_val is None:
            config.trainer.gradient_clip_val = self.config_init["trainer"]["gradient_clip_val"] = 1.0
        folder = Path(config.output)
        metric = METRICS[self.datamodule.preprocessing.task]
        every = min(config.every or 200, max(1, batches - 1))
        checkpoint: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
        best: dict[str, Any] = {"monitor": f"val_{metric}", "mode": "min" if metric in ("mae", "loss") else "max"}
        ours: dict[str, Any] = {
            "callbacks": [
                History(folder),
                *([EMAWeightAveraging(decay=config.ema)] if config.ema else []),
                *([] if config.trainer.enable_progress_bar is False else [Progress()]),
                Interrupt(folder),
                Best(**checkpoint, filename=BEST.removesuffix(".ckpt"), **best),
                MidEpochCheckpoint(**checkpoint, filename=LAST.removesuffix(".ckpt"), every_n_train_steps=every),
                ModelCheckpoint(
                    **checkpoint, filename=LAST.removesuffix(".ckpt"), every_n_epochs=1, save_on_train_epoch_end=True
                ),
            ],
            "logger": TensorBoardLogger(folder, name="tensorboard", version=""),
            "plugins": AtomicCheckpointIO(),
            "default_root_dir": folder,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "log_every_n_steps": min(config.trainer.log_every_n_steps or 20, batches),
        }
        if config.trainer.strategy == "fsdp2":
            if config.ema:
                raise ValueError(f"--ema {config.ema} averages whole weights, which fsdp2 shares out: leave one of them out")
            ours["strategy"] = ModelParallelStrategy(self._processes(), 1, save_distributed_checkpoint=False)
        given = self.config_init["trainer"]
        for name, value in list(ours.items()):
            if name in ("callbacks", "plugins"):
                ours[name] = [*_as_list(given[name]), *_as_list(value)]
            elif given[name] is not None and name not in ("strategy", "use_distributed_sampler"):
                del ours[name]  # the user's own
        return super().instantiate_trainer(**{**ours, **kwargs})

    def _processes(self) -> int:
        """How many processes the options of Lightning's Trainer ask for."""
        trainer = self.config.trainer
        probe = Trainer(accelerator=trainer.accelerator, devices=trainer.devices, logger=False, enable_checkpointing=False)
        return probe.num_devices * trainer.num_nodes


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


class Best(ModelCheckpoint):
    """Saves the best so far, which it remembers when the folder of the run was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        moved = lambda path: str(Path(self.dirpath or "") / Path(path).name) if path else path  # noqa: E731
        paths = {name: moved(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, "dirpath": self.dirpath, **paths, "best_k_models": best})


class MidEpochCheckpoint(ModelCheckpoint):
    """Saves every few steps, but not at the last of an epoch: after it comes the validation, which must not be missed.

    Nor while gradients add up, which no checkpoint holds.
    """

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        if not trainer.is_last_batch and not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, *args, **kwargs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        pass

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        pass


class Interrupt(Callback):
    """Ctrl-C ends a run after the step at hand, with a checkpoint; a second one at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nending after this step; once more to end at once", file=sys.stderr)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        if self._agreed(trainer) and not trainer.is_last_batch and not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(self.folder / LAST)
            raise KeyboardInterrupt

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._agreed(trainer):
            raise KeyboardInterrupt

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any process was asked: all must end at the same step."""
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        if stage == "fit":
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is a second of saving, not to be torn


class History(Callback):
    """Writes `metrics.csv`, a row an epoch; one that a resumed run comes to again is replaced."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a row."""
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {name: f"{float(value):.6g}" for name, value in sorted(trainer.callback_metrics.items())}
        rows = [old for old in read_metrics(self.path) if int(old["step"]) < trainer.global_step] + [row]
        with replacing(self.path) as file:
            names = list(dict.fromkeys(name for one in rows for name in one))
            lines = [",".join(names), *(",".join(str(one.get(name, "")) for name in names) for one in rows)]
            file.write(("\n".join(lines) + "\n").encode())


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Returns the rows of `metrics.csv`; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_curves(folder: Path) -> None:
    """Draws the losses and the metric of `metrics.csv` by step, into `curves.png`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(folder / "metrics.csv")
    if not rows:
        return
    metrics = [name for name in rows[0] if name.startswith("val_") and name != "val_loss"]
    panels = [[name for name in ("train_loss", "val_loss") if name in rows[0]], *([metrics] if metrics else [])]
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_xlabel("step")
        axes.legend()
        axes.grid(alpha=0.3)
    with replacing(folder / "curves.png") as file:
        figure.savefig(file, dpi=120)


def export(module: Trained, folder: Path) -> None:
    """Saves the model with the best weights so far, or the last where none was validated yet, in this library's format."""
    checkpoint = AtomicCheckpointIO().load_checkpoint(folder / BEST if (folder / BEST).exists() else folder / LAST)
    prefix = "network."
    state = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)}
    network = PerceiverIO(**module.network.config)  # a new one: that of the run may be shared out over processes
    network.load_state_dict(state)
    network.save_pretrained(folder)


def write_card(module: Trained, data: PathData, folder: Path) -> None:
    """Writes `README.md`, which says what the model is where others find it."""
    size = sum(parameter.numel() for parameter in module.network.parameters())
    train, validation = len(data.rows["train"]), len(data.rows["validation"])
    labels, task = ", ".join(data.preprocessing.labels[:50]), data.preprocessing.task.replace("_", " ")
    lines = [
        "---",
        "library_name: perceivers",
        "tags:",
        "- perceiver",
        "---",
        "",
        f"A Perceiver IO of {size:,} parameters for {data.found.kind.lower()}, {task}{f' ({labels})' if labels else ''}.",
        f"Trained on {train:,} samples, validated on {validation:,}{_last_line(folder)}.",
        "",
        "```bash",
        "pip install 'perceivers[train]'",
        "perceivers predict FOLDER FILES..." if labels else "perceivers fit PATH --from FOLDER",
        "```",
    ]
    with replacing(folder / "README.md") as file:
        file.write(("\n".join(lines) + "\n").encode())


def _quietly() -> None:
    """Turns off what Lightning says of itself, of devices that are not there, and of what is meant so here."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    messages = ("Checkpoint directory", ".*does not have many workers", ".*isinstance.treespec, LeafSpec", "The number of tra")
    for message in (
        *messages,
        "FSDP2-wrapped",
        "You're using the WeightAveraging",
        "The dirpath has changed",
        ".*could not find the monitored",
    ):
        warnings.filterwarnings("ignore", message=message)


def fit(arguments: list[str], command_name: str = "fit") -> int:
    """Runs `perceivers fit` or `pretrain`; returns the exit status.

    Args:
        arguments: PATH, or `--resume FOLDER`; then options, of which `--from FOLDER` begins with a pretrained model.
        command_name: "fit" or "pretrain".
    """
    pretrain = command_name == "pretrain"
    path, folders, rest = _positional(arguments)
    resume, start = folders["--resume"], folders["--from"]
    if {"--help", "-h"} & set(rest):
        print(HELP.format(name=command_name, more=MORE[command_name]))
    if path is None and resume is None and not {"--help", "-h", "--print_config"} & set(rest) and "--config" not in rest:
        raise ValueError(f"PATH is missing: perceivers {command_name} PATH, or perceivers {command_name} --resume FOLDER")
    if resume is not None:
        if not (resume / LAST).exists():
            raise ValueError(
                f"--resume {resume}: there is no {LAST} in it, it was stopped before its first checkpoint: begin anew"
            )
        rest = [*_config(resume), *rest]
    elif path is not None:
        rest = [f"--data.path={path}", *(["--data.task=pretraining"] if pretrain else []), *rest]
    if start is not None:
        if pretrain:
            raise ValueError(f"--from {start}: pretraining begins anew: perceivers pretrain --resume {start} goes on")
        rest += [f"--model.start={start}", f"--data.like={start / PREPROCESSING}"]
    if not any(one.split("=")[0] == "--output" for one in rest) and resume is None:
        rest.append(f"--output={_new_folder(path or 'run')}")
    _quietly()
    try:
        command = Command(rest, Pretraining if pretrain else Training)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    module, data, trainer = command.model, command.datamodule, command.trainer
    folder = Path(command.config.output)
    if resume is None and (folder / LAST).exists():
        raise ValueError(f"--output {folder}: a run is there already: go on with --resume {folder}, or give another folder")
    again = f"perceivers {command_name} --resume {folder}"
    if trainer.is_global_zero:
        sweep(folder)
        command.config.model.network = module.network.config
        data.preprocessing.save(folder / PREPROCESSING)
        command.config.data.preprocessing = str(folder / PREPROCESSING)
        command.config.data.like = None
        if Path(command.config.data.path).exists():  # so that the run can be gone on with from any folder
            command.config.data.path = str(Path(command.config.data.path).resolve())
        if not pretrain:
            command.config.model.start = None  # from here on its weights are those of the run
        with replacing(folder / CONFIG) as file:
            file.write(command.parser.dump(command.config, skip_none=False).encode())
        print("\n".join(_choices(module, data, trainer, folder)), flush=True)
    status, stopped = 0, ""
    before = signal.getsignal(signal.SIGINT)
    try:
        try:
            trainer.fit(module, data, ckpt_path=None if resume is None else str(resume / LAST), weights_only=True)
        except (KeyboardInterrupt, SystemExit):
            status, stopped = 130, "interrupted"
        except Exception:
            if trainer.is_global_zero and (folder / LAST).exists():
                print(f"stopped by an error; what was trained up to the last checkpoint is kept: {again}", file=sys.stderr)
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if trainer.is_global_zero and (folder / LAST).exists():
            draw_curves(folder)
            export(module, folder)
            write_card(module, data, folder)
            print(f"\n{stopped or 'done'}: the model is in {folder}{_last_line(folder)}")
            print(f"use it:  perceivers {f'fit PATH --from {folder}' if pretrain else f'predict {folder} FILES...'}")
            print(f"go on:   {again}{'' if status else _longer(trainer)}")
        elif trainer.is_global_zero:
            print(f"\n{stopped or 'done'} before the first checkpoint: nothing was saved")
    finally:
        signal.signal(signal.SIGINT, before)
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # all is saved: a late Ctrl-C changes nothing
    return status


def evaluate(arguments: list[str], stage: str) -> int:
    """Runs `perceivers validate FOLDER [PATH]` or `test`; returns the exit status."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"FOLDER is missing: perceivers {stage} FOLDER [PATH], with the folder of a run")
    folder, rest = Path(arguments[0]), arguments[1:]
    if not (folder / CONFIG).exists() or not (folder / "model.safetensors").exists():
        raise ValueError(f"FOLDER {folder}: there is no {CONFIG} and model.safetensors in it: give the folder of a run")
    if rest and not rest[0].startswith("-"):
        rest = [f"--data.path={rest[0]}", *rest[1:]]
    _quietly()
    command = Command([*_config(folder), "--trainer.logger=false", "--trainer.enable_progress_bar=false", *rest])
    network = type(command.model.network).from_pretrained(folder)
    command.model.network.load_state_dict(network.state_dict())
    run = command.trainer.validate if stage == "validate" else command.trainer.test
    if stage == "test" and "test" not in command.datamodule.found.splits:
        print("there are no samples to test: these are those to validate")
    (found,) = run(command.model, command.datamodule, verbose=False)
    if command.trainer.is_global_zero:
        print("\n".join(f"{name} {value:.4g}" for name, value in found.items()))
    return 0


def _config(folder: Path) -> list[str]:
    """The options that read the configuration of a run, wherever its folder was moved to."""
    return ["--config", str(folder / CONFIG), f"--output={folder}", f"--data.preprocessing={folder / PREPROCESSING}"]


def _positional(arguments: list[str]) -> tuple[str | None, dict[str, Path | None], list[str]]:
    """Takes PATH, `--resume FOLDER` and `--from FOLDER` out of the arguments."""
    rest = list(arguments)
    folders: dict[str, Path | None] = {"--resume": None, "--from": None}
    for name in folders:
        for i, one in enumerate(rest):
            if one == name or one.startswith(f"{name}="):
                if one == name and i + 1 == len(rest):
                    raise ValueError(f"{name}: FOLDER is missing: give the folder of a run")
                folders[name] = Path(one.partition("=")[2] or rest.pop(i + 1))
                del rest[i]
                break
    path = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if folders["--resume"] is not None and (path is not None or folders["--from"] is not None):
        raise ValueError(f"--resume {folders['--resume']}: a resumed run knows its path and its weights: leave the others out")
    return path, folders, rest


def _new_folder(path: str) -> Path:
    """The first of runs/NAME-1, 2, ... that is free; the processes of one run agree on it."""
    chosen = os.environ.get("PERCEIVERS_RUN")
    if chosen is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("--output is missing: with several processes, give the folder of the run")
        name = Path(path.removeprefix("hub:")).stem or "run"
        number = 1
        while (Path("runs") / f"{name}-{number}").exists():
            number += 1
        chosen = os.environ["PERCEIVERS_RUN"] = str(Path("runs") / f"{name}-{number}")
    return Path(chosen)


def _choices(module: Trained, data: PathData, trainer: Trainer, folder: Path) -> list[str]:
    """What was chosen, and how to change it."""
    network = module.network
    size = sum(parameter.numel() for parameter in network.parameters())
    inputs = network.config["inputs"]
    train, validation = len(data.rows["train"]), len(data.rows["validation"])
    given = "" if "validation" in data.found.splits else "  [--data.validation, --data.seed]"
    return [
        *data.found.facts,
        f"train on {train:,}, validate on {validation:,}{given}",
        f"model: PerceiverIO of {size:,} parameters, {inputs['kind']} inputs, {network.config['num_latent_tokens']} latents"
        f" of width {network.config['dim']}  [--model.network.dim, .num_latent_tokens, ...]",
        f"{_length(trainer)} epochs of {len(data.train_dataloader())} batches of {data.batch_size}"
        "  [--trainer.max_epochs, --data.batch_size]",
        f"{module.optimizer_settings['name']}, learning rate {module.optimizer_settings['lr']:g}, {module.schedule}"
        "  [--model.optimizer, --model.lr, --model.schedule]",
        f"folder: {folder}  [--output]; everything that was chosen: {folder / CONFIG}; all options: perceivers fit --help",
    ]


def _length(trainer: Trainer) -> str:
    if trainer.max_steps > 0:
        return f"{trainer.max_steps} steps, in"
    return str(trainer.max_epochs) if (trainer.max_epochs or -1) > 0 else "any number of"


def _longer(trainer: Trainer) -> str:
    """The option that goes on with a run that came to its end, for as long again."""
    if trainer.max_steps > 0:
        return f" --trainer.max_steps {2 * trainer.max_steps}"
    epochs = trainer.max_epochs or -1
    return f" --trainer.max_epochs {2 * epochs}" if epochs > 0 else ""


def _last_line(folder: Path) -> str:
    rows = read_metrics(folder / "metrics.csv")
    if not rows:
        return ""
    metric = next((n for n in rows[0] if n.startswith("val_") and n != "val_loss"), "val_loss")
    best = (min if metric in ("val_mae", "val_loss") else max)(float(row[metric]) for row in rows)
    return f", {metric} {best:.4g}"
