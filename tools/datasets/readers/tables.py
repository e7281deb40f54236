"""Tables: the census data set Adult."""

import zipfile
from pathlib import Path

from tools.datasets.archives import format_csv


def read_adult(path: Path) -> str:
    """Return a CSV table with 14 features and the columns label ("<=50K" or ">50K") and split. Missing values are empty."""
    columns = ["age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship"]
    columns += ["race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "label", "split"]
    rows = []
    with zipfile.ZipFile(path) as archive:
        for split, file, first in (("train", "adult.data", 0), ("test", "adult.test", 1)):
            lines = archive.read(f"aif360/data/raw/adult/{file}").decode().strip().split("\n")[first:]
            rows += [["" if value == "?" else value for value in line.strip(" .").split(", ")] + [split] for line in lines]
    return format_csv(columns, rows)
