"""The package as users meet it: imports, exports, versions, requirements, command line."""

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import perceivers

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, **kwargs) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, **kwargs).stdout


def test_import_is_light_and_without_side_effects():
    code = """
import sys, threading, warnings, logging, os
before, filters, environment = set(sys.modules), list(warnings.filters), dict(os.environ)
import perceivers
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new & {"torch", "numpy", "einops", "safetensors", "huggingface_hub"} == set(), new
assert threading.active_count() == 1
assert warnings.filters == filters and dict(os.environ) == environment and not logging.root.handlers
assert dir(perceivers) == perceivers.__all__
"""
    assert run("-W", "error", "-c", code) == ""


def test_exports():
    code = """
import perceivers
for name in perceivers.__all__:
    assert getattr(perceivers, name) is getattr(perceivers, name) is not None, name
from perceivers import *
print(sorted(name for name in globals() if not name.startswith("_") and name != "perceivers"))
"""
    names = ["Perceiver", "PerceiverBlock", "PerceiverIO", "create_model", "from_pretrained", "list_models", "name"]
    assert run("-c", code).strip() == str(names)
    with pytest.raises(AttributeError, match="module 'perceivers' has no attribute 'Perciever'"):
        perceivers.Perciever  # noqa: B018


def test_importing_the_models_changes_nothing_in_torch():
    code = """
import torch
before = torch.get_num_threads(), torch.get_default_dtype(), torch.random.get_rng_state()
import perceivers; perceivers.Perceiver, perceivers.create_model
after = torch.get_num_threads(), torch.get_default_dtype(), torch.random.get_rng_state()
assert before[:2] == after[:2] and torch.equal(before[2], after[2])
"""
    run("-W", "error", "-c", code)


def test_a_training_step_imports_no_compiler():
    """It takes a second and 200 MB."""
    code = """
import sys, torch, perceivers
model = perceivers.Perceiver(data_shape=[3, 64, 64], num_latent_tokens=32, dim=32, heads=2)
model.set_attention_implementation("separable")
model(torch.randn(1, 3, 64, 64)).sum().backward()
assert "torch._dynamo" not in sys.modules
"""
    run("-c", code)


def test_version():
    assert importlib.metadata.version("perceivers") == perceivers.__version__


def test_nothing_pulls_torchvision():
    """Walks what all extras resolved to here; torchvision pins builds of torch."""
    seen, queue = set(), [("perceivers", frozenset({"demo", "test", "dev"}))]
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        for requirement in map(Requirement, requires):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras | {""}):
                queue.append((requirement.name.lower(), frozenset(requirement.extras)))
    names = {name for name, _ in seen}
    assert {"torch", "safetensors", "numpy"} <= names
    assert "torchvision" not in names
    assert "torchaudio" not in names


def test_core_dependencies_stay_few():
    core = [Requirement(r) for r in importlib.metadata.requires("perceivers")]
    names = {r.name for r in core if r.marker is None}
    assert names == {"torch", "einops", "numpy", "safetensors", "huggingface_hub"}


def test_command_line():
    info = run("-m", "perceivers")
    assert info == run("-m", "perceivers", "info")
    assert info.startswith(f"perceivers {perceivers.__version__}\n")
    assert "attention implementations: reference, dense" in info
    assert re.search(r"perceiver_imagenet_fourier +44,912,254 parameters +706.3 GFLOPs", run("-m", "perceivers", "models"))
    assert run("-m", "perceivers", "--version").strip() == perceivers.__version__
    wrong = subprocess.run([sys.executable, "-m", "perceivers", "fitt"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "invalid choice: 'fitt'" in wrong.stderr


@pytest.mark.checkout
class TestRepository:
    """What only a checkout has."""

    def test_versions_agree(self):
        assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == perceivers.__version__
        assert f"\nversion: {perceivers.__version__}\n" in (ROOT / "CITATION.cff").read_text()

    def test_constraints_pin_torch(self):
        assert "\ntorch==2.13.0\n" in (ROOT / "constraints.txt").read_text()

    def test_original_import_path(self):
        code = (
            "from models.perceiver import Perceiver, PerceiverBlock; import perceivers as p; print(Perceiver is p.Perceiver)"
        )
        assert run("-c", code, cwd=ROOT).strip() == "True"

    def test_imports_point_down(self):
        """No import reaches a sibling or a floor above, not even inside a function, and no modules form a circle."""
        floor = {name: level for level, names in enumerate(FLOORS) for name in names}
        graph = imports()
        packages = {name.split(".")[1] for name in graph if name.count(".")}
        assert packages == floor.keys() - {"perceivers"}, "FLOORS lists every package and module"
        for module, imported in graph.items():
            own = place(module)
            for other in map(place, imported):
                assert other == own or floor[other] < floor[own], f"{module} imports {other}, which is not on a floor below"
        list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError

    @pytest.mark.parametrize("package", ["cli", "training", "data", "checkpoints"])
    def test_only_the_command_line_prints_or_exits(self, package):
        found = [
            f"{file.name}:{node.lineno}"
            for file in (ROOT / "perceivers" / package).rglob("*.py")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit", "os._exit")
        ]
        assert bool(found) == (package == "cli"), found


# The packages and modules of perceivers, lowest floor first.
FLOORS = (
    {"_checks", "_atomic"},
    {"_registry", "pretrained", "kernels"},
    {"ops"},
    {"position"},
    {"layers"},
    {"inputs"},
    {"outputs"},
    {"presets", "losses"},
    {"base"},
    {"perceiver", "perceiver_io"},
    {"factory", "testing"},
    {"data", "checkpoints"},
    {"perceivers"},  # the front door: exports of all of these, each imported on first use
    {"training"},
    {"cli"},
    {"__main__"},
)


def place(module: str) -> str:
    """The package, or the module at the root, that a module belongs to."""
    return (*module.split("."), "perceivers")[1]


def imports() -> dict[str, set[str]]:
    """What each module of the package imports from it, anywhere in the file."""
    files = {}
    for file in (ROOT / "perceivers").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph = {}
    for module, file in files.items():
        graph[module] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} has a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                name = name if name in files else name.rpartition(".")[0]
                if name in files and name != module:
                    graph[module].add(name)
    return graph
