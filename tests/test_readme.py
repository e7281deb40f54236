"""Every code block of the README and of docs/: Python blocks run, shell lines are tested in the named place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perceivers import create_model, list_models

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.checkout

README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

# Each shell line of the README, and the test or CI step that runs it.
TESTED = {
    "make demo": "tests/test_demo.py runs its recipe",
    "make test": ".ci/run",
    "make docs": ".ci/run",
    "make bench": "tests/test_benchmarks.py runs its recipe",
    "python examples/Perceiver/demo.py": "tests/test_demo.py",
    "python -m perceivers": "tests/test_package.py",
    "python -m perceivers models": "tests/test_package.py",
    "pip install -c constraints.txt .": "tools/wheel_test.py",
    "pip install 'perceivers[train]'": "make test installs the extra",
    "perceivers fit photos": "tests/training/test_documented.py runs such lines",
    "perceivers predict runs/photos-1 new.jpg": "tests/training/test_documented.py runs such lines",
    "perceivers explain runs/photos-1 new.jpg": "tests/training/test_documented.py runs such lines",
    "perceivers pretrain photos --output learned": "tests/training/test_documented.py runs such lines",
    "perceivers fit --resume runs/photos-1": "tests/training/test_documented.py runs such lines",
}


def test_python_blocks_run():
    code = "\n".join(block for language, block in BLOCKS if language == "python")
    assert code.count("Perceiver(") >= 1
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=300)


def test_the_usage_block_is_the_original_one():
    """Names and order of the arguments in the project's first README."""
    block = next(block for language, block in BLOCKS if language == "python" and "models.perceiver" in block)
    assert block.startswith("from models.perceiver import Perceiver\n\nperceiver = Perceiver(\n    data_shape=[1, 224, 224],")
    names = re.findall(r"^    (\w+)=", block, re.MULTILINE)
    assert (
        names
        == (
            "data_shape cross_heads num_latent_tokens dim heads layers_indice num_latent_transformers_in_layers num_bands"
            " resolution frequency_base pre_norm ff_dim ff_dim_scale ff_dropout attention_dropout cross_kv_dim head_dim"
        ).split()
    )


def test_shell_lines_are_known():
    lines = [
        line.split("#")[0].strip()
        for language, block in BLOCKS
        if language == "bash"
        for line in block.splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert "make demo" in lines
    assert set(lines) <= TESTED.keys()


def test_length():
    assert len(README.splitlines()) < 200


def test_no_other_blocks():
    assert {language for language, _ in BLOCKS} <= {"python", "bash", "bibtex"}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README):
        target = target[0] or target[1]
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


PAGES = {path.name for path in (ROOT / "docs").glob("*.md")} - {"training.md"}  # tests/training/test_documented.py


@pytest.mark.parametrize("page", sorted(PAGES))
def test_documentation_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    if blocks:
        subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(blocks)], check=True, cwd=ROOT, timeout=300)


def test_tables_of_models():
    """The table of the documentation has all published models; every parameter count, also in the README, is the model's."""
    counts = r"`(perceiver_\w+)` \| ([\d,]+)"
    documented = re.findall(counts, (ROOT / "docs" / "_models.md").read_text())
    assert {name for name, _ in documented} == {name for name in list_models() if not name.endswith(("_tiny", "_small"))}
    for name, count in {*documented, *re.findall(counts, README)}:
        with torch.device("meta"):
            model = create_model(name)
        assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == count, name
