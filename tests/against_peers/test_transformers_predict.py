"""`perceivers predict` of models of transformers, against their own processors and classes: files give the same answers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="the training extra is not installed")
pytest.importorskip("tqdm", reason="the training extra is not installed")
from PIL import Image

from accuracy import draw_parameters
from perceivers import from_pretrained
from perceivers.__main__ import main
from perceivers.cli.predict import load, results
from perceivers.data.preprocessing import Preprocessing

pytestmark = pytest.mark.peer("transformers")
CLASSES = 7
WIDTHS = {"num_latents": 4, "d_latents": 16, "num_self_attends_per_block": 1, "num_blocks": 2}
NAMES = {"id2label": {i: f"bird {i}" for i in range(CLASSES)}, "label2id": {f"bird {i}": i for i in range(CLASSES)}}
SMALL = {**WIDTHS, "num_cross_attention_heads": 1, "num_self_attention_heads": 4, **NAMES}
IMAGES = {  # widths and heights, modes
    "odd.png": (301, 223, "RGB"),
    "tall.jpg": (97, 260, "RGB"),
    "small.png": (31, 17, "RGB"),
    "line.png": (40, 2, "RGB"),
    "exact.png": (256, 256, "RGB"),
    "grey.png": (120, 77, "L"),
    "alpha.png": (65, 90, "RGBA"),
    "palette.png": (81, 53, "P"),
    "black-and-white.png": (50, 64, "1"),
    "sixteen.png": (45, 37, "I;16"),
    "cmyk.jpg": (64, 48, "CMYK"),
    "turned.jpg": (101, 63, "RGB"),
}


def draw(folder: Path) -> list[str]:
    """Smooth images of all kinds."""
    generator = np.random.default_rng(0)
    for name, (width, height, mode) in IMAGES.items():
        rough = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), 3)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(rough.convert("L")).astype(np.uint16))
        elif mode == "RGBA":
            image = rough.copy()
            image.putalpha(rough.convert("L"))
        else:
            image = rough.convert(mode)
        exif = Image.Exif()
        if name.startswith("turned"):
            exif[0x0112] = 6  # held by its side
        image.save(folder / name, exif=exif)
    return [str(folder / name) for name in IMAGES]


PROCESSORS = {
    "defaults": {},
    "other sizes": {"size": {"height": 32, "width": 48}, "crop_size": {"height": 40, "width": 50}},
    "larger than the image": {"size": {"height": 64, "width": 40}, "crop_size": {"height": 48, "width": 48}},
    "no crop": {"do_center_crop": False, "size": {"height": 33, "width": 20}},
    "as it is": {"do_rescale": False, "do_normalize": False, "size": {"height": 9, "width": 8}, "crop_size": 10},
    "bilinear": {"resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 1 / 127},
}


def processor_of(**settings):
    from transformers.models.perceiver.image_processing_pil_perceiver import PerceiverImageProcessorPil

    return PerceiverImageProcessorPil(**settings)


def classifier(peer, name, folder, **settings):
    """Their model with random weights and a processor, saved."""
    model = draw_parameters(getattr(peer, name)(peer.PerceiverConfig(**SMALL, **settings)).eval())
    model.save_pretrained(folder)
    return model


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("case", PROCESSORS)
def test_images_become_the_same_numbers(peer, case, tmp_path):
    """To the last bit."""
    classifier(peer, "PerceiverForImageClassificationFourier", tmp_path)
    processor = processor_of(**PROCESSORS[case])
    processor.save_pretrained(tmp_path)
    ours = Preprocessing.create(from_pretrained(tmp_path).preprocessing)
    for file in draw(tmp_path):
        wanted = processor(file, return_tensors="pt")["pixel_values"][0]
        got, mask = ours(file)
        assert mask is None
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted.float()), file
        assert got.shape == ours.example()[0].shape
        assert got.std() > 0


def test_older_files_of_the_processor(peer, tmp_path):
    """One number for a square, and what is not specified is the default: as the published models have it."""
    classifier(peer, "PerceiverForImageClassificationFourier", tmp_path)
    old = {"crop_size": 256, "feature_extractor_type": "PerceiverFeatureExtractor", "resample": 3, "size": 224}
    file = draw(tmp_path)[1]
    for written in (old, {}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
        ours = Preprocessing.create(from_pretrained(tmp_path).preprocessing)
        assert torch.equal(ours(file)[0], processor_of()(file, return_tensors="pt")["pixel_values"][0])


HEADS = {
    "PerceiverForImageClassificationFourier": ({}, 224),
    "PerceiverForImageClassificationConvProcessing": ({}, 224),
    "PerceiverForImageClassificationLearned": ({"image_size": 24}, 24),
}


@pytest.mark.parametrize("name", HEADS)
@torch.inference_mode()
def test_predict_gives_the_same_answers(peer, name, tmp_path, monkeypatch, capsys):
    """Also after perceivers convert, and after the way back, where their classes read what we wrote."""
    monkeypatch.chdir(tmp_path)
    settings, side = HEADS[name]
    theirs = classifier(peer, name, "theirs", **settings)
    processor = processor_of(size={"height": side, "width": side}, crop_size={"height": side * 8 // 7, "width": side * 8 // 7})
    processor.save_pretrained("theirs")
    Path("images").mkdir()
    files = draw(Path("images"))[::6]
    wanted = [theirs(processor(file, return_tensors="pt")["pixel_values"]).logits.softmax(-1)[0] for file in files]
    assert max(float(one.max()) for one in wanted) > 1.5 / CLASSES

    assert main(["convert", "theirs", "ours"]) == 0
    assert main(["convert", "ours", "back", "--to", "transformers"]) == 0
    capsys.readouterr()
    for folder in ("theirs", "ours", "back"):
        assert main(["predict", folder, *files, "--top=5", f"--output={folder}.csv"]) == 0
        printed = capsys.readouterr().out.splitlines()
        for file, row, probabilities in zip(files, read(f"{folder}.csv"), wanted, strict=True):
            assert row["file"] == file
            got = torch.tensor([float(row[f"bird {i}"]) for i in range(CLASSES)])
            assert (got - probabilities).abs().max() < 1e-4
            best = probabilities.argsort(descending=True)[:5].tolist()
            assert got.argsort(descending=True)[:5].tolist() == best
            assert row["prediction"] == theirs.config.id2label[best[0]]
            line = next(line for line in printed if line.startswith(file))
            assert line == f"{file}: " + ", ".join(f"bird {i} {float(row[f'bird {i}']):.1%}" for i in best)

    again = getattr(peer, name).from_pretrained("back")
    assert again.config.id2label == theirs.config.id2label
    written = type(processor).from_pretrained("back")
    for file, probabilities in zip(files, wanted, strict=True):
        pixels = written(file, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, processor(file, return_tensors="pt")["pixel_values"])
        assert (again(pixels).logits.softmax(-1)[0] - probabilities).abs().max() < 1e-5


TEXTS = ["", "a", "Grüße, Jürgen ❤", "a text that is longer than what the model reads: " * 3]


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
@torch.inference_mode()
def test_texts(peer, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    language = {**WIDTHS, "d_model": 24, "max_position_embeddings": 60, "qk_channels": 16, "v_channels": 16, **NAMES}
    config = peer.PerceiverConfig(**language, problem_type=problem)
    theirs = draw_parameters(peer.PerceiverForSequenceClassification(config).eval())
    theirs.save_pretrained("theirs")
    tokenizer = peer.PerceiverTokenizer(model_max_length=60)
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    logits = theirs(**batch).logits
    wanted = logits.sigmoid() if problem else logits.softmax(-1)
    assert main(["convert", "theirs", "ours"]) == 0
    assert main(["convert", "ours", "back", "--to", "transformers"]) == 0
    assert peer.PerceiverConfig.from_pretrained("back").problem_type == (problem or "single_label_classification")
    for folder in ("theirs", "ours", "back"):
        model, preprocessing = load(folder)
        assert preprocessing.labels == list(theirs.config.id2label.values())
        for (name, got), text, probabilities in zip(
            results(model, preprocessing, [(text, text) for text in TEXTS]), TEXTS, wanted, strict=True
        ):
            assert name == text
            assert (got - probabilities).abs().max() < 1e-4
    Path("text.txt").write_text(TEXTS[2], encoding="utf-8")
    assert main(["predict", "theirs", "text.txt"]) == 0
    (row,) = read("predictions.csv")
    assert float(row["bird 3"]) == pytest.approx(float(wanted[2][3]), abs=1e-4)


def test_what_has_no_preprocessing(peer, tmp_path, capsys):
    classifier(peer, "PerceiverForImageClassificationFourier", tmp_path)
    assert main(["predict", str(tmp_path), str(tmp_path)]) == 2
    assert "has no preprocessing" in capsys.readouterr().err
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 224}}))
    with pytest.warns(UserWarning, match="preprocessor_config.json is left out, and the labels: size="):
        assert from_pretrained(tmp_path).preprocessing is None
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is damaged"):
        from_pretrained(tmp_path)


def test_names_that_are_missing_are_numbers(peer, tmp_path):
    classifier(peer, "PerceiverForImageClassificationFourier", tmp_path)
    processor_of().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "id2label": {**config["id2label"], "3": None}}))
    assert from_pretrained(tmp_path).preprocessing["labels"][2:5] == ["bird 2", "LABEL_3", "bird 4"]
