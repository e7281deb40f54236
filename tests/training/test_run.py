"""The command line as a new user meets it, on small real data of each kind."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="the training extra is not installed")
import training_material as material
from perceivers import PerceiverIO
from perceivers.__main__ import main
from perceivers.data.detect import recognise
from perceivers.data.preprocessing import Images, Videos
from perceivers.layers.encoder import LatentEncoder
from perceivers.training.augment import _changed
from training_material import TINY

pytestmark = [pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERCEIVERS_RUN", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


MADE = {
    "pictures": (lambda: material.pictures(Path("digits")), "accuracy", 0.9, ["digits/1"]),
    "sounds": (lambda: material.sounds(Path("tones")), "accuracy", None, ["tones/high"]),
    "videos": (lambda: material.videos(Path("moves")), "accuracy", None, ["moves"]),
    "arrays": (lambda: material.arrays(Path("digits.npz")), "accuracy", None, ["digits.npz"]),
    "points": (lambda: material.points(Path("shapes.npz")), "accuracy", None, ["shapes.npz"]),
    "table": (lambda: material.wines(Path("wines.csv")), "accuracy", None, ["wines.csv"]),
    "numbers": (lambda: material.diabetes(Path("diabetes.csv")), "mae", None, ["diabetes.csv"]),
    "texts": (lambda: material.texts(Path("texts")), "accuracy", None, ["texts/code"]),
}


@pytest.mark.parametrize("kind", MADE)
def test_fit_validate_test_predict_explain(kind, capsys):
    make, metric, _, files = MADE[kind]
    path = make()
    assert main(["fit", str(path), "--output=run", *TINY]) == 0
    said = capsys.readouterr().out
    assert "perceivers fit --resume run" in said
    assert "perceivers predict run" in said
    model = ("config.json", "model.safetensors", "preprocessing.json")
    for name in (*model, "metrics.csv", "curves.png", "run.yaml", "last.ckpt", "best.ckpt"):
        assert (Path("run") / name).stat().st_size > 0, name
    assert list(Path("run/tensorboard").iterdir())
    assert f"val_{metric}" in Path("run/README.md").read_text()
    history = rows("run/metrics.csv")
    assert len(history) == 2
    assert {"epoch", "step", "train_loss", "val_loss", f"val_{metric}"} <= history[0].keys()

    assert main(["validate", "run"]) == 0
    best = (min if metric == "mae" else max)(float(row[f"val_{metric}"]) for row in history)
    line = next(line for line in capsys.readouterr().out.splitlines() if f"val_{metric}" in line)
    assert float(line.split()[1]) == pytest.approx(best, rel=1e-3)
    assert main(["test", "run"]) == 0
    assert f"test_{metric}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    assert main(["predict", "run", *files, "--output=said.csv"]) == 0
    predictions = rows("said.csv")
    labels = json.loads(Path("run/preprocessing.json").read_text())["labels"]
    assert len(predictions) > 10
    assert all(label in predictions[0] for label in labels)
    if metric == "accuracy":
        assert sum(float(predictions[0][label]) for label in labels) == pytest.approx(1, abs=1e-4)
        assert {row["prediction"] for row in predictions} <= set(labels)
    assert len({tuple(row[label] for label in labels) for row in predictions}) > 1  # it looks at them

    assert main(["explain", "run", *files, "--most=1", "--output=maps"]) == 0
    (drawn,) = Path("maps").glob("explain-*.png")
    assert drawn.stat().st_size > 5000


def test_digits_are_learned():
    material.arrays(Path("digits.npz"), 1797)
    smaller = ["--model.network.dim=64", "--trainer.max_epochs=8", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "digits.npz", "--output=run", *smaller]) == 0
    assert max(float(row["val_accuracy"]) for row in rows("run/metrics.csv")) > 0.7


def test_predictions_do_not_depend_on_the_batch(capsys):
    material.sounds(Path("tones"))  # of different lengths, padded and masked
    assert main(["fit", "tones", "--output=run", *TINY]) == 0
    for size in ("1", "7"):
        assert main(["predict", "run", "tones", f"--output={size}.csv", f"--batch-size={size}"]) == 0
    one, seven = (np.array([float(row["high"]) for row in rows(f"{size}.csv")]) for size in ("1", "7"))
    np.testing.assert_allclose(one, seven, atol=1e-5)


def test_the_model_is_an_ordinary_one():
    material.pictures(Path("digits"))
    assert main(["fit", "digits", "--output=run", "--ema=0.9", *TINY]) == 0
    model = PerceiverIO.from_pretrained("run")
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    checkpoint = torch.load("run/best.ckpt", weights_only=True)
    averaged, last = checkpoint["state_dict"], checkpoint["current_model_state"]
    for name, tensor in load_file("run/model.safetensors").items():
        assert torch.equal(tensor, averaged[f"network.{name}"])
    assert not torch.equal(averaged["network.encoder.latents"], last["network.encoder.latents"])


@pytest.mark.parametrize("option", ["pictures=randaugment", "pictures=crop+flip", "mixup=0.2", "cutmix=1.0"])
def test_augmentation(option):
    material.pictures(Path("digits"))
    assert (
        main(["fit", "digits", "--output=run", f"--model.{option}", "--model.optimizer=lamb", *TINY, "--trainer.max_epochs=1"])
        == 0
    )


def test_crops_are_whole_pictures_to_the_model():
    """A crop is resized, and its positions span -1 to 1; all frames of a video are cropped alike."""
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 1, 16).expand(40, 1, 12, 16)
    torch.manual_seed(0)
    cropped = _changed("crop", x)
    assert cropped.shape == x.shape
    widths = (cropped[..., -1] - cropped[..., 0]).mean((1, 2)) / 2
    assert widths.min() < 0.5
    assert widths.max() > 0.8
    model = PerceiverIO(
        inputs=Images(size=[12, 16], channels=1, labels=[], task="classification").inputs(16), outputs=OUTPUT, dim=16
    )
    (whole,), (crop,) = model.inputs(x), model.inputs(cropped)
    assert all(torch.equal(a, b) for a, b in zip(whole.tables, crop.tables, strict=True))
    video = x.unsqueeze(2).expand(-1, 3, 4, -1, -1)
    for name in ("light", "flip", "crop"):
        changed = _changed(name, video)
        assert changed.shape == video.shape
        torch.testing.assert_close(changed, changed[:, :1, :1].expand_as(changed))
        assert not torch.equal(changed, video)


@pytest.mark.parametrize("count", [2, 4, 40, 201])
def test_frames_are_spread_over_the_clip(count):
    """However long it is, from its first frame to its last."""
    import av

    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for t in range(count):  # it becomes brighter
            grey = np.full((16, 32, 3), 20 + round(215 * t / (count - 1)), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    x, mask = Videos(size=[8, 8], num_frames=4, labels=[], task="classification")(Path("clip.mp4"))
    assert x.shape == (3, 4, 8, 8)
    assert mask is None
    found = (x.mean((0, 2, 3)) + 1) * 127.5
    wanted = [20, 20, 235, 235] if count == 2 else [20, 92, 163, 235]
    np.testing.assert_allclose(found.numpy(), wanted, atol=15)  # of 16 kept frames the nearest


OUTPUT = {"kind": "LearnedQueries", "dim": 16, "num_channels": 2}


@pytest.mark.parametrize(
    ("precision", "dtype", "mixed"), [("bf16-mixed", torch.float32, True), ("bf16-true", torch.bfloat16, False)]
)
def test_precision_and_activation_checkpointing(precision, dtype, mixed, monkeypatch):
    recomputed, seen = LatentEncoder._recomputed, set()

    def spy(self, latents, inputs):
        seen.add((latents.dtype, torch.is_autocast_enabled(latents.device.type)))
        return recomputed(self, latents, inputs)

    monkeypatch.setattr(LatentEncoder, "_recomputed", spy)
    material.pictures(Path("digits"))
    options = [*TINY, "--trainer.max_epochs=3", "--model.grad_checkpointing=true", "--model.lr=0.005"]
    assert main(["fit", "digits", "--output=run", f"--trainer.precision={precision}", *options]) == 0
    assert seen == {(dtype, mixed)}
    losses = [float(row["val_loss"]) for row in rows("run/metrics.csv")]
    assert losses[-1] < losses[0] < 1
    assert load_file("run/model.safetensors")["encoder.latents"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled():
    """The same curve, and a checkpoint that a run without it goes on from."""
    material.pictures(Path("digits"))
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        assert main(["fit", "digits", f"--output={name}", *TINY, f"--model.compile={compiled}"]) == 0
    for one, other in zip(rows("plain/metrics.csv"), rows("compiled/metrics.csv"), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=1e-3)
    assert main(["fit", "--resume", "compiled", "--model.compile=false", "--trainer.max_epochs=3"]) == 0


def test_large_arrays_are_mapped(monkeypatch):
    from perceivers.data import detect as module

    material.arrays(Path("digits.npz"))
    small = module.read_npz(Path("digits.npz"))
    assert not any(isinstance(array, np.memmap) for array in small.values())
    monkeypatch.setattr(module, "MAPPED", 1000)
    mapped = module.read_npz(Path("digits.npz"))
    assert isinstance(mapped["x"], np.memmap)
    for name, array in small.items():
        np.testing.assert_array_equal(mapped[name], array)
    np.savez_compressed("packed.npz", **small)
    np.testing.assert_array_equal(module.read_npz(Path("packed.npz"))["x"], small["x"])
    np.savez("turned.npz", x=np.asfortranarray(small["x"]), y=small["y"])
    np.testing.assert_array_equal(module.read_npz(Path("turned.npz"))["x"], small["x"])
    assert main(["fit", "digits.npz", "--output=run", *TINY, "--trainer.max_epochs=1"]) == 0
    Path("folder").mkdir()
    for name, array in small.items():
        np.save(f"folder/{name}.npy", array)
    assert main(["fit", "folder", "--output=other", *TINY, "--trainer.max_epochs=1"]) == 0
    assert Path("run/model.safetensors").read_bytes() == Path("other/model.safetensors").read_bytes()
    assert main(["pretrain", "folder/x.npy", "--output=pre", *TINY, "--trainer.max_epochs=1"]) == 0


def test_tables_of_other_formats_and_their_splits():
    pandas = pytest.importorskip("pandas")
    material.wines(Path("wines.csv"))
    table = pandas.read_csv("wines.csv")
    table["split"] = ["test" if i % 5 == 0 else "train" for i in range(len(table))]
    table.to_parquet("wines.parquet")
    table.to_json("wines.jsonl", orient="records", lines=True)
    table.to_csv("wines.tsv", sep="\t", index=False)
    metrics = []
    for suffix in ("parquet", "jsonl", "tsv"):
        assert main(["fit", f"wines.{suffix}", f"--output={suffix}", *TINY, "--trainer.max_epochs=1"]) == 0
        assert main(["test", suffix]) == 0
        metrics.append(Path(suffix, "metrics.csv").read_text())
        assert "split" not in Path(suffix, "preprocessing.json").read_text()
    assert len(set(metrics)) == 1
    found = recognise("wines.parquet")
    assert {name: len(split.records) for name, split in found.splits.items()} == {"train": 142, "test": 36}


@pytest.mark.parametrize("kind", ["pictures", "sounds", "videos", "texts"])
def test_a_set_on_the_hub(kind, monkeypatch, capsys):
    """As it comes from the hub: undecoded files in a table, with the names of the classes, in parts."""
    import datasets

    folder, feature, suffix = {
        "pictures": (material.pictures, datasets.Image(), "png"),
        "sounds": (material.sounds, datasets.Audio(), "wav"),
        "videos": (material.videos, datasets.Video(), "mp4"),
        "texts": (material.texts, datasets.Value("string"), "txt"),
    }[kind]
    files = sorted(folder(Path("files")).rglob(f"*.{suffix}"))
    names, column = sorted({file.parent.name for file in files}), {"texts": "text"}.get(kind, "media")
    undecoded = [file.read_text() if kind == "texts" else {"path": file.name, "bytes": file.read_bytes()} for file in files]
    records = [{column: one, "label": names.index(file.parent.name)} for one, file in zip(undecoded, files, strict=True)]
    parts = {"train": records[::2], "test": records[1::2]}
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})
    made = made.cast_column(column, feature).cast_column("label", datasets.ClassLabel(names=names))
    made.save_to_disk("saved")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or datasets.load_from_disk("saved"))
    assert main(["fit", "hub:someone/things", "--output=run", *TINY, "--trainer.max_epochs=1"]) == 0
    assert asked == ["someone/things"]
    assert f"{len(parts['train']):,} train, {len(parts['test']):,} test" in capsys.readouterr().out
    assert main(["test", "run"]) == 0
    assert main(["fit", "saved", "--output=other", *TINY, "--trainer.max_epochs=1"]) == 0
    assert Path("run/metrics.csv").read_bytes() == Path("other/metrics.csv").read_bytes()
    assert main(["predict", "run", str(files[0])]) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_sample_in_the_middle_of_a_run(workers, capsys):
    """Its first bytes are right, so that nobody sees it before it is its turn; what was trained until then is kept."""
    folder = material.pictures(Path("digits"), 360)
    broken = folder / "1" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    options = [*TINY, "--every=1", "--data.batch_size=8", f"--data.num_workers={workers}", "--data.seed=3"]
    error = fails(["fit", "digits", "--output=run", *options], capsys)
    assert error.splitlines()[-1].startswith("perceivers fit: digits/1/1.png is damaged")
    assert "perceivers fit --resume run" in error
    assert "Traceback" not in error
    trained = torch.load("run/last.ckpt", weights_only=True)["global_step"]
    broken.write_bytes(whole)
    assert main(["fit", "--resume", "run"]) == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] > trained > 0


def test_a_full_disk_ends_the_run(capsys, monkeypatch):
    from perceivers.training import files

    material.pictures(Path("digits"))
    options = [*TINY, "--every=2", "--data.batch_size=32"]
    assert main(["fit", "digits", "--output=whole", *options]) == 0
    right, calls = files.os.fsync, iter(range(1000))

    def fsync(descriptor):
        if next(calls) > 9:  # of a file, not of its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        right(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        error = fails(["fit", "digits", "--output=run", *options], capsys, status=1)
    assert "the disk is full" in error
    assert not list(Path("run").glob(".*"))
    assert main(["fit", "--resume", "run"]) == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_classes_that_are_numbers_are_in_their_order():
    np.savez("x.npz", x=np.zeros((6, 2, 9)), y=[10, -1, 2, 10, -1, 2])
    found = recognise("x.npz")
    assert found.labels == ["-1", "2", "10"]
    assert found.splits["train"].targets.tolist() == [2, 0, 1, 2, 0, 1]


def test_several_labels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 2, 12)).astype(np.float32)
    np.savez("many.npz", x=x, y=(x.mean(-1) > 0).astype(np.int64))
    assert main(["fit", "many.npz", "--output=run", *TINY]) == 0
    assert "val_f1" in rows("run/metrics.csv")[0]
    assert main(["predict", "run", "many.npz"]) == 0
    assert list(rows("predictions.csv")[0]) == ["file", "y0", "y1"]


def test_progress(capsys, monkeypatch):
    """A line an epoch; in a terminal also a bar to the end of the run, which a resumed run begins where it was."""
    material.pictures(Path("digits"))
    options = [option for option in TINY if "bar" not in option]
    assert main(["fit", "digits", "--output=run", *options, "--data.batch_size=32"]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("epoch")]
    history = rows("run/metrics.csv")
    assert len(lines) == 2
    for number, (line, row) in enumerate(zip(lines, history, strict=True), 1):
        assert line.startswith(f"epoch {number}/2  step {row['step']}  train_loss {float(row['train_loss']):.4g}")
        assert f"val_accuracy {float(row['val_accuracy']):.4g}" in line
    assert "step/s" not in said.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["fit", "--resume", "run", "--trainer.max_epochs=4"]) == 0
    said = capsys.readouterr()
    frames = [frame for frame in said.err.split("\r") if "step/s" in frame or "s/step" in frame]
    assert f"{2 * int(history[0]['step'])}/{4 * int(history[0]['step'])}" in frames[0]
    assert "epoch 3/4" in said.err
    assert "train_loss" in said.err


def test_a_number_of_steps(capsys):
    material.pictures(Path("digits"))
    arguments = [option for option in TINY if "epochs" not in option]
    assert main(["fit", "digits", "--output=run", *arguments, "--trainer.max_steps=5", "--data.batch_size=48"]) == 0
    said = capsys.readouterr().out
    assert "5 steps, in epochs of 3 batches of 48" in said
    assert "perceivers fit --resume run --trainer.max_steps 10" in said
    assert main(["fit", "--resume", "run", "--trainer.max_steps=10"]) == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 10


def test_folders_are_numbered():
    material.pictures(Path("digits"), 40)
    arguments = [*TINY, "--trainer.max_epochs=1"]
    script = f"from perceivers.__main__ import main; raise SystemExit(main(['fit', 'digits', *{arguments}]))"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert sorted(folder.name for folder in Path("runs").iterdir()) == ["digits-1", "digits-2"]


def fails(arguments, capsys, status=2):
    assert main(arguments) == status
    return capsys.readouterr().err


def _pictures_with_a_broken_one():
    folder = material.pictures(Path("digits"))
    (folder / "1" / "1.png").write_bytes((folder / "1" / "1.png").read_bytes()[:40])
    return folder


def _videos_with_a_broken_one():
    folder = material.videos(Path("moves"))
    (folder / "right" / "1.mp4").write_bytes(b"no video")
    return folder


def _saved(name, **arrays):
    np.savez(name, **arrays)
    return name


def _one_class():
    folder = material.pictures(Path("digits"))
    for file in (folder / "1").iterdir():
        file.unlink()
    (folder / "1").rmdir()
    return folder


def _write(name, text):
    Path(name).write_text(text)
    return name


BAD = {
    "nothing there": (lambda: "missing", [], "no such file"),
    "an empty folder": (lambda: str(_made("empty")), [], "no pictures, sounds, videos or .txt"),
    "an unknown suffix": (lambda: _write("notes.doc", "x"), [], "none of .npz"),
    "one class": (_one_class, [], "only one class"),
    "a broken picture": (_pictures_with_a_broken_one, [], "1.png is damaged"),
    "a broken video": (lambda: _videos_with_a_broken_one(), [], "1.mp4 is damaged"),
    "an augmentation that videos do not have": (
        lambda: material.videos(Path("moves")),
        ["--model.pictures=crop+randaugment"],
        "for pictures only",
    ),
    "an unknown augmentation": (lambda: material.pictures(Path("digits")), ["--model.pictures=crop+turn"], "pictures='turn'"),
    "no frames": (lambda: material.videos(Path("moves")), ["--data.num_frames=0"], "num_frames=0"),
    "no seconds": (lambda: material.sounds(Path("tones")), ["--data.seconds=0"], "seconds=0"),
    "flat points": (lambda: _saved("x.npz", points=np.zeros((4, 5, 7)), y=[0, 1, 0, 1]), [], "[n, m, 2 or 3]"),
    "objects": (lambda: _saved("x.npz", x=np.array([{}, {}]), y=[0, 1]), [], "x.npz is damaged or holds no arrays"),
    "arrays without targets": (lambda: _saved("x.npz", x=np.zeros((4, 5))), [], "no ['y']"),
    "options of Lightning that contradict": (
        lambda: material.arrays(Path("x.npz")),
        ["--trainer.enable_checkpointing=false"],
        "enable_checkpointing=False",
    ),
    "a broken archive": (lambda: _write("x.npz", "no archive"), [], "x.npz"),
    "no target column": (lambda: material.wines(Path("wines.csv")), ["--data.target=price"], "price"),
    "a target without numbers": (lambda: material.wines(Path("wines.csv")), ["--data.task=regression"], "no numbers"),
    "missing targets": (lambda: _write("x.csv", "a,label\n1,u\n2,\n3,v\n"), [], "missing in 1 of 3"),
    "no columns": (lambda: _write("x.csv", "a,label\n1,u\n1,v\n1,u\n"), [], "none of the columns"),
    "a wrong share": (lambda: material.arrays(Path("x.npz")), ["--data.validation=1.5"], "validation=1.5"),
    "a wrong optimiser": (lambda: material.arrays(Path("x.npz")), ["--model.optimizer=sgdx"], "optimizer='sgdx'"),
    "a wrong width": (lambda: material.arrays(Path("x.npz")), ["--model.network.dim=30", "--model.network.heads=4"], "heads"),
}


def _made(name):
    Path(name).mkdir()
    return name


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case, capsys):
    make, options, message = BAD[case]
    path = make()
    assert message in fails(["fit", str(path), "--output=run", *options], capsys)
    assert not Path("run/last.ckpt").exists()


def test_a_run_is_not_overwritten(capsys):
    material.pictures(Path("digits"), 40)
    assert main(["fit", "digits", "--output=run", *TINY, "--trainer.max_epochs=1"]) == 0
    before = Path("run/model.safetensors").read_bytes()
    assert "--resume run" in fails(["fit", "digits", "--output=run", *TINY], capsys)
    assert Path("run/model.safetensors").read_bytes() == before


def test_a_loss_that_is_no_number_ends_the_run(capsys, monkeypatch):
    from perceivers.training.module import Training

    material.pictures(Path("digits"))
    right = Training.loss

    def wrong(self, outputs, targets, label_smoothing=0.0):
        return right(self, outputs, targets, label_smoothing) * (float("nan") if self.global_step == 6 else 1)

    monkeypatch.setattr(Training, "loss", wrong)
    error = fails(["fit", "digits", "--output=run", "--every=2", *TINY], capsys, status=1)
    assert "the loss is nan at step 6" in error
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 6


def test_wrong_files_to_predict(capsys):
    material.pictures(Path("digits"))
    assert main(["fit", "digits", "--output=run", *TINY, "--trainer.max_epochs=1"]) == 0
    Path("broken.png").write_bytes(b"no picture")
    assert main(["predict", "run", "broken.png", "digits/0"]) == 1  # the others are predicted
    assert "broken.png is damaged" in capsys.readouterr().err
    assert len(rows("predictions.csv")) > 10
    assert "no such file" in fails(["predict", "run", "nowhere.png"], capsys)
    assert "reads pictures" in fails(["predict", "run", _write("a.txt", "x")], capsys)
    assert "perceivers fit" in fails(["predict", "digits", "digits/0"], capsys)
    known = json.loads(Path("run/preprocessing.json").read_text())
    Path("run/preprocessing.json").write_text(json.dumps({**known, "channels": 2}))
    assert "channels=2 must be 1" in fails(["predict", "run", "digits/0"], capsys)
    Path("run/preprocessing.json").write_text("{")
    assert "damaged" in fails(["predict", "run", "digits/0"], capsys)


def test_help_is_quick_and_complete():
    said = subprocess.run([sys.executable, "-m", "perceivers", "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("fit", "pretrain", "validate", "test", "predict", "explain", "data", "convert", "info", "models"):
        assert command in said
    said = subprocess.run([sys.executable, "-X", "importtime", "-m", "perceivers", "--help"], capture_output=True, text=True)
    assert "| torch\n" not in said.stderr  # so it takes no second
    before = os.times().children_user
    subprocess.run([sys.executable, "-m", "perceivers", "fit", "--help"], capture_output=True, check=True)
    assert os.times().children_user - before < 8


def test_what_a_command_needs(capsys):
    assert "PATH is missing" in fails(["fit"], capsys)
    assert "FOLDER is missing" in fails(["test"], capsys)
    assert "no last.ckpt" in fails(["fit", "--resume", _made("empty")], capsys)
