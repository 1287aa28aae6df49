"""The floors of the house, held by the syntax tree; CONTRIBUTING.md describes them for people.

`violations(path, source)` says what is wrong with one file of `mcr`. It runs over every file, and
over invented ones that break each rule, so that it is known to find what it looks for.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "mcr").rglob("*.py"))
PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("scripts", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)

# A part may import itself and any part of a lower floor; of parts beside it only DOORS.
FLOORS = {"errors": 0, "data": 1, "models": 1, "objectives": 1}
FLOORS |= {"training": 2, "downstream": 2, "analysis": 2}
DOORS = {"mcr.data.batch"}  # the contract between data and objectives

# Where a third party may be imported; elsewhere in mcr it may not. Those that are not named may be
# imported anywhere; all must be in setup.py, which keeps TensorFlow out. What only an extra brings
# lives in the one file or folder that needs it, and must be named here.
CONFIGURATION = ("mcr/training/", "mcr/downstream/")
WEIGHTS = ("mcr/models/", "mcr/objectives/", "mcr/training/", "mcr/downstream/", "mcr/analysis/")
HOMES = {
    "hydra": CONFIGURATION,
    "omegaconf": CONFIGURATION,
    "torch": ("mcr/data/batch.py", "mcr/data/crops.py", "mcr/data/loader.py", *WEIGHTS),
    "torchvision": WEIGHTS,
    "matplotlib": (
        "mcr/analysis/",
        "mcr/training/pictures.py",
        "mcr/training/summary.py",
        "mcr/downstream/",
    ),
    "ray": ("mcr/data/ray_engine.py",),
    "wandb": ("mcr/training/logging.py",),
    "timm": ("mcr/models/",),
    "huggingface_hub": ("mcr/models/",),
    "onnx": ("mcr/models/",),
    "onnxruntime": ("mcr/models/",),
    "h5py": ("mcr/downstream/", "mcr/analysis/masked_pictures.py"),
    "av": ("mcr/downstream/",),
    "robomimic": ("mcr/downstream/robomimic",),
    "robosuite": ("mcr/downstream/",),
    "mujoco": ("mcr/downstream/",),
    "metaworld": ("mcr/downstream/",),
}
DISTRIBUTIONS = {"PIL": "pillow", "hydra": "hydra-core", "omegaconf": "hydra-core"}

BAD_NAMES = {"base", "common", "core", "helper", "helpers", "misc", "util", "utils"}
MAX_LINES = 60  # of a function, without its docstring


def declared(extras: bool = False) -> set[str]:
    """The distributions that setup.py installs (or: its extras do), in lower case, '-' as '_'."""
    keywords = {
        keyword.arg: keyword.value
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    }
    lines = ast.literal_eval(keywords["install_requires"])
    if extras:
        lines = sum(ast.literal_eval(keywords["extras_require"]).values(), [])
    return {_normal(re.split("[<>=!~ \\[]", line)[0]) for line in lines}


def _normal(distribution: str) -> str:
    return distribution.lower().replace("-", "_")


def imports(tree: ast.AST) -> set[str]:
    """Everything imported, anywhere in the file: `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the module `path` ("mcr/data/x.py"): one sentence each."""
    tree = ast.parse(source)
    found = _bad_names(path) + _long_functions(tree)
    if source.strip() and not ast.get_docstring(tree):
        found.append("has no docstring")
    for name in sorted(imports(tree)):
        if name.startswith("."):
            found.append(f"imports {name} relatively")
        elif name == "mcr" or name.startswith("mcr."):
            found += _wrong_floor(path, name)
        else:
            found += _wrong_home(path, name.partition(".")[0])
    return found + _reaches_through_the_front_door(path, tree)


def _bad_names(path: str) -> list[str]:
    return [f"is named {part}" for part in Path(path).with_suffix("").parts if part in BAD_NAMES]


def _long_functions(tree: ast.AST) -> list[str]:
    return [
        f"{function.name} has {lines} lines"
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := _num_lines(function)) > MAX_LINES
    ]


def _num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function):
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def _wrong_floor(path: str, name: str) -> list[str]:
    if path == "mcr/__init__.py" or name == "mcr":  # the public names: cheap, see below
        return []
    here, there = Path(path).with_suffix("").parts[1], name.split(".")[1]
    if there not in FLOORS:
        return [f"imports {name}, which is on no floor"]
    is_door = any(name == door or name.startswith(f"{door}.") for door in DOORS)
    if here == there or FLOORS[there] < FLOORS[here]:
        return []
    if FLOORS[there] == FLOORS[here] and is_door:
        return []
    return [f"imports {name}: {here} may not see {there}"]


def _wrong_home(path: str, package: str) -> list[str]:
    if package in sys.stdlib_module_names:
        return []
    distribution = _normal(DISTRIBUTIONS.get(package, package))
    if distribution not in declared() | declared(extras=True):
        return [f"imports {package}, which is not in setup.py"]
    if distribution not in declared() and package not in HOMES:
        return [f"imports {package}, which only an extra brings; give it a home in HOMES"]
    if package in HOMES and not path.startswith(HOMES[package]):
        return [f"imports {package}, allowed in {', '.join(HOMES[package])}"]
    return []


def _reaches_through_the_front_door(path: str, tree: ast.AST) -> list[str]:
    """`import mcr` is for its version and its place; `mcr.load_model` would hide a dependency."""
    return [
        f"uses mcr.{node.attr}: import it from its own module"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "mcr"
        and not node.attr.startswith("__")
    ]


@pytest.mark.parametrize("path", MODULES)
def test_module_keeps_to_its_floor(path):
    assert path == "mcr/__init__.py" or Path(path).with_suffix("").parts[1] in FLOORS
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", PROGRAMS)
def test_program_is_documented_short_and_free_of_tensorflow(path):
    tree = ast.parse((ROOT / path).read_text())
    assert ast.get_docstring(tree)
    assert _bad_names(path) + _long_functions(tree) == []
    packages = {name.partition(".")[0] for name in imports(tree)}
    if path != "benchmarks/extract.py":  # measures TensorFlow's way where that is installed
        assert not packages & {"tensorflow", "tensorflow_datasets"}


LONG = "def f():\n" + "    x = 1\n" * MAX_LINES


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("mcr/data/x.py", "from mcr.training.train import train", "data may not see training"),
        ("mcr/data/x.py", "import mcr.models.encoder", "data may not see models"),
        ("mcr/data/x.py", "def f():\n    from mcr.objectives import y", "may not see objectives"),
        ("mcr/objectives/x.py", "from mcr.data.loader import ClipLoader", "may not see data"),
        ("mcr/objectives/x.py", "from mcr.data import batches", "may not see data"),
        ("mcr/objectives/x.py", "from mcr.models import backbones", "may not see models"),
        ("mcr/analysis/x.py", "from mcr.training import train", "analysis may not see training"),
        ("mcr/downstream/x.py", "from mcr.analysis import curves", "may not see analysis"),
        ("mcr/errors.py", "from mcr.data.batch import Batch", "errors may not see data"),
        ("mcr/models/x.py", "from mcr import load_model", "on no floor"),
        ("mcr/data/x.py", "import mcr\nmcr.load_model('x')", "uses mcr.load_model"),
        ("mcr/data/x.py", "from .batch import Batch", "relatively"),
        ("mcr/data/index.py", "import torch", "imports torch, allowed in"),
        ("mcr/data/x.py", "import torchvision.io", "imports torchvision, allowed in"),
        ("mcr/models/x.py", "from omegaconf import OmegaConf", "imports omegaconf, allowed in"),
        ("mcr/training/x.py", "from matplotlib import pyplot", "imports matplotlib, allowed in"),
        ("mcr/data/x.py", "import tensorflow as tf", "tensorflow, which is not in setup.py"),
        ("mcr/data/x.py", "import ray", "imports ray, allowed in mcr/data/ray_engine.py"),
        ("mcr/models/x.py", "import pytest", "pytest, which only an extra brings"),
        ("mcr/data/utils.py", "", "is named utils"),
        ("mcr/common/x.py", "", "is named common"),
        ("mcr/data/x.py", "import os", "has no docstring"),
        ("mcr/data/x.py", LONG, f"f has {MAX_LINES + 1} lines"),
    ],
)
def test_each_rule_can_be_broken(path, source, complaint):
    assert any(complaint in violation for violation in violations(path, source))


def test_sound_module_has_no_violation():
    source = '"""Doc."""\nimport os\nimport torch\nimport mcr\nfrom mcr.data.batch import Batch\n'
    source += "from mcr.errors import UserError\nfrom mcr.objectives.contrast import x\n"
    source += LONG.replace("    x = 1\n", "", 1) + "mcr.__version__\n"
    assert violations("mcr/objectives/x.py", source) == []


def modules_after(statement: str) -> set[str]:
    """Top-level packages that a fresh Python holds after `statement`."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_mcr_costs_nothing():
    loaded = modules_after("import mcr; dir(mcr); mcr.__version__")
    assert "mcr" in loaded
    assert not loaded & {"torch", "torchvision", "hydra", "omegaconf", "numpy", "pandas", "PIL"}


def test_extraction_and_cleaning_need_no_torch():
    loaded = modules_after("import mcr.data.extract, mcr.data.clean, mcr.data.index")
    assert "simplejpeg" in loaded
    assert not loaded & {"torch", "torchvision", "hydra", "matplotlib"}


def test_public_names_exist():
    code = "import mcr; assert all(getattr(mcr, name) for name in mcr.__all__)"
    assert "torch" in modules_after(code)
