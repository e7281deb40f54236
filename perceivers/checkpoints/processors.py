"""transformers' `preprocessor_config.json`, `id2label` and `problem_type`, from and to a description of our preprocessing.

A description is a dict ready for JSON that `perceivers.data.preprocessing.Preprocessing.create` takes. Their counterparts
are PerceiverImageProcessor, and for text PerceiverTokenizer, which has no file.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from perceivers._checks import a_number, an_int
from perceivers.inputs import ByteTokenizer

PROCESSOR = "preprocessor_config.json"
# What a file without the key means.
DEFAULTS: dict[str, Any] = {
    "do_center_crop": True,
    "crop_size": 256,
    "do_resize": True,
    "size": 224,
    "resample": 3,  # Pillow's number of bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
TASKS = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes in a configuration, in the order of the model's outputs.

    Raises:
        ValueError: If what should be names is something else.
    """
    names = config.get("id2label")
    if names is None:
        names = dict.fromkeys("01")  # as there: two labels are not saved
    if not isinstance(names, Mapping) or not names or not all(isinstance(n, str | int | None) for n in names.values()):
        raise ValueError("id2label is not a dict of names: copy or download it again")
    found = [names.get(str(i)) for i in range(len(names))]
    return [f"LABEL_{i}" if name is None else str(name) for i, name in enumerate(found)]


def read(
    config: Mapping[str, Any], labels: Sequence[str], processor: Mapping[str, Any] | None, source: str
) -> dict[str, Any] | None:
    """Return the description of a model's preprocessing, by its configuration, the names of its classes, and its processor.

    It is `None` if there is no such preprocessing here, with a warning that names the source if there is a processor.
    """
    head = config["architectures"][0]
    task = TASKS.get(str(config.get("problem_type")), "regression" if len(labels) == 1 else "classification")
    common: dict[str, Any] = {"labels": list(labels), "task": task}
    if task == "regression":
        common |= {"target_mean": [0.0] * len(labels), "target_std": [1.0] * len(labels)}
    if head == "PerceiverForSequenceClassification" and config.get("vocab_size", 262) == ByteTokenizer.vocab_size:
        return {"kind": "Text", **common, "max_length": config.get("max_position_embeddings", 2048), "cls_sep": True}
    if head.startswith("PerceiverForImageClassification") and processor is not None:
        try:
            return {"kind": "CenterCroppedImages", **common, **_images(processor)}
        except ValueError as error:
            warnings.warn(f"{source}: {PROCESSOR} is left out, and the labels: {error}", stacklevel=2)
    return None


def _images(processor: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**DEFAULTS, **{key: value for key, value in processor.items() if key in DEFAULTS and value is not None}}
    if settings["do_resize"] is not True:
        raise ValueError("do_resize=false is not supported")
    scaled, normalised = settings["do_rescale"], settings["do_normalize"]
    return {
        "size": _size("size", settings["size"]),
        "crop": _size("crop_size", settings["crop_size"]) if settings["do_center_crop"] else None,
        "resample": an_int("resample", settings["resample"], 0),
        "scale": a_number("rescale_factor", settings["rescale_factor"]) if scaled else 1.0,
        "mean": _channels("image_mean", settings["image_mean"]) if normalised else [0.0] * 3,
        "std": _channels("image_std", settings["image_std"]) if normalised else [1.0] * 3,
    }


def _size(name: str, value: Any) -> list[int]:
    """Return height and width; older files have one number."""
    if isinstance(value, Mapping):
        if value.keys() != {"height", "width"}:
            raise ValueError(f"{name}={dict(value)!r} must have height and width")
        value = [value["height"], value["width"]]
    value = value if isinstance(value, list) else [value] * 2
    if len(value) != 2:
        raise ValueError(f"{name}={value!r} must be a height and a width")
    return [an_int(name, n) for n in value]


def _channels(name: str, value: Any) -> list[float]:
    value = value if isinstance(value, list) else [value] * 3
    if len(value) != 3 or not all(isinstance(n, int | float) for n in value):
        raise ValueError(f"{name}={value!r} must be a number for each of three channels")
    return [float(n) for n in value]


def write(description: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `preprocessor_config.json` that prepares images in the same way, or `None` if transformers has none."""
    if description["kind"] != "CenterCroppedImages":
        return None
    crop, size = description["crop"], description["size"]
    return {
        "image_processor_type": "PerceiverImageProcessor",
        "do_center_crop": crop is not None,
        "crop_size": dict(zip(("height", "width"), crop or size, strict=True)),
        "do_resize": True,
        "size": dict(zip(("height", "width"), size, strict=True)),
        "resample": description["resample"],
        "do_rescale": True,
        "rescale_factor": description["scale"],
        "do_normalize": True,
        "image_mean": description["mean"],
        "image_std": description["std"],
    }
