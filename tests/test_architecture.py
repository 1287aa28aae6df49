"""The floors of the house, held by the syntax tree; CONTRIBUTING.md describes them for people.

`violations(path, source)` says what is wrong with one file of `mcr`, `circles(sources)` which
files import each other. Both run over every file, and over invented ones that break each rule, so
that they are known to find what they look for.
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
    if path.parent.name != "of_others"  # these run in environments of other software
)

# A room may import itself and any room of a lower floor; of rooms beside it only DOORS.
STOREYS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("runs",),
    ("data", "models", "objectives"),
    ("training", "release", "features"),
    ("policies", "simulation"),
    ("evaluation", "robomimic", "lerobot"),
    ("commands",),
    ("cli",),
)
FLOORS = {room: floor for floor, rooms in enumerate(STOREYS) for room in rooms}
DOORS = {"mcr.data.batch"}  # the contract between data and objectives

# Where a third party may be imported; elsewhere in mcr it may not. Those that are not named may be
# imported anywhere; all must be in setup.py, which keeps TensorFlow out. What only an extra brings
# lives in the one file or folder that needs it, and must be named here.
CONFIGURATION = ("mcr/runs/hydra_command.py", "mcr/training/", "mcr/policies/")
WEIGHTS = tuple(
    f"mcr/{room}/"
    for room in [
        "models",
        "objectives",
        "training",
        "release",
        "features",
        "policies",
        "evaluation",
        "robomimic",
        "lerobot",
    ]
)
HOMES = {
    "hydra": CONFIGURATION,
    "omegaconf": CONFIGURATION,
    "torch": (
        "mcr/runs/devices.py",
        "mcr/runs/gather.py",
        "mcr/runs/log.py",
        "mcr/data/batch.py",
        "mcr/data/loader.py",
        "mcr/data/steps.py",
        *WEIGHTS,
    ),
    "torchvision": WEIGHTS,
    "matplotlib": (
        "mcr/data/contact_sheet.py",
        "mcr/data/inspection_picture.py",
        "mcr/training/pictures.py",
        "mcr/training/curves.py",
        "mcr/evaluation/",
    ),
    "ray": ("mcr/runs/ray_executor.py",),
    "shtab": ("mcr/cli.py",),
    "wandb": ("mcr/runs/log.py",),
    "timm": ("mcr/models/",),
    "huggingface_hub": ("mcr/models/", "mcr/release/"),
    "onnx": ("mcr/models/",),
    "onnxruntime": ("mcr/models/",),
    "h5py": ("mcr/data/hdf5.py", "mcr/data/sources/", "mcr/robomimic/", "mcr/simulation/"),
    "av": ("mcr/data/sources/", "mcr/features/"),
    "pyarrow": ("mcr/data/sources/",),
    "robomimic": ("mcr/robomimic/",),
    "lerobot": ("mcr/lerobot/",),
    "gymnasium": ("mcr/lerobot/",),
    "robosuite": ("mcr/robomimic/", "mcr/simulation/"),
    "mujoco": ("mcr/robomimic/", "mcr/simulation/"),
    "metaworld": ("mcr/simulation/",),
}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "omegaconf": "hydra-core",
    "yaml": "pyyaml",
}

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


def circles(sources: dict[str, str]) -> list[list[str]]:
    """Modules that import each other, in one step or many, path -> source; each circle sorted.

    Imports inside functions count, and so do modules that are imported by name, with
    `importlib.import_module("mcr.simulation.rendering")` or an f-string that may name several.
    `import mcr` does not: it costs nothing, and its public names resolve when they are used.
    """
    names = {_module_name(path): path for path in sources}
    graph = {
        name: _imported_modules(ast.parse(sources[path]), set(names) - {"mcr"}) - {name}
        for name, path in names.items()
        if name != "mcr"
    }
    reached = {name: _reached_from(name, graph) for name in graph}
    found = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return [list(circle) for circle in sorted(found)]


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported_modules(tree: ast.AST, modules: set[str]) -> set[str]:
    """Those of `modules` that the file imports: `from a import b` is a.b, or a if b is a name."""
    found = set()
    for name in imports(tree):
        longest = next((m for m in (name, name.rpartition(".")[0]) if m in modules), None)
        found |= {longest} if longest else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {m for m in modules if re.fullmatch(_named_by(node.args[0]), m)}
    return found


def _named_by(argument: ast.expr) -> str:
    """A regular expression for what a string or f-string can be; of anything else, for nothing."""
    parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    if not any(isinstance(part, ast.Constant) for part in parts):
        return "(?!)"
    return "".join(
        re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in parts
    )


def _reached_from(name: str, graph: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(graph[name])
    while waiting:
        if (module := waiting.pop()) not in reached:
            reached.add(module)
            waiting += graph.get(module, ())
    return reached


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
    # These measure TensorFlow's way where that is installed.
    if path not in ("benchmarks/extract.py", "benchmarks/of_others/tfds_frames.py"):
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
        ("mcr/runs/x.py", "from mcr.data.batch import Batch", "runs may not see data"),
        ("mcr/data/x.py", "from mcr.features import cache", "data may not see features"),
        ("mcr/features/x.py", "from mcr.training import train", "features may not see training"),
        ("mcr/features/x.py", "from mcr.release import golden", "features may not see release"),
        (
            "mcr/policies/x.py",
            "from mcr.simulation import tasks",
            "may not see simulation",
        ),
        (
            "mcr/simulation/x.py",
            "from mcr.policies import heads",
            "may not see policies",
        ),
        ("mcr/robomimic/x.py", "from mcr.evaluation import results", "may not see evaluation"),
        ("mcr/errors.py", "from mcr.data.batch import Batch", "errors may not see data"),
        ("mcr/models/x.py", "from mcr import load_model", "on no floor"),
        ("mcr/data/x.py", "import mcr\nmcr.load_model('x')", "uses mcr.load_model"),
        ("mcr/data/x.py", "from .batch import Batch", "relatively"),
        ("mcr/data/index.py", "import torch", "imports torch, allowed in"),
        ("mcr/data/x.py", "import torchvision.io", "imports torchvision, allowed in"),
        ("mcr/models/x.py", "from omegaconf import OmegaConf", "imports omegaconf, allowed in"),
        ("mcr/training/x.py", "from matplotlib import pyplot", "imports matplotlib, allowed in"),
        ("mcr/data/x.py", "import tensorflow as tf", "tensorflow, which is not in setup.py"),
        ("mcr/data/x.py", "import ray", "imports ray, allowed in mcr/runs/ray_executor.py"),
        ("mcr/models/x.py", "import pytest", "pytest, which only an extra brings"),
        ("mcr/data/utils.py", "", "is named utils"),
        ("mcr/common/x.py", "", "is named common"),
        ("mcr/data/x.py", "import os", "has no docstring"),
        ("mcr/data/x.py", LONG, f"f has {MAX_LINES + 1} lines"),
    ],
)
def test_each_rule_can_be_broken(path, source, complaint):
    assert any(complaint in violation for violation in violations(path, source))


def test_no_modules_import_each_other():
    assert circles({path: (ROOT / path).read_text() for path in MODULES}) == []


@pytest.mark.parametrize(
    ("sources", "circle"),
    [
        ({"a": "import mcr.data.b", "b": "from mcr.data import a"}, ["a", "b"]),
        ({"a": "from mcr.data.b import x", "b": "def f():\n    import mcr.data.a"}, ["a", "b"]),
        (
            {"a": "import mcr.data.b", "b": "import mcr.data.c", "c": "import mcr.data.a"},
            ["a", "b", "c"],
        ),
        ({"a": "import_module('mcr.data.b')", "b": "import mcr.data.a"}, ["a", "b"]),
        ({"a": "import_module(f'mcr.data.{x}')", "b": "import mcr.data.a"}, ["a", "b"]),
    ],
)
def test_a_circle_is_found(sources, circle):
    paths = {f"mcr/data/{name}.py": source for name, source in sources.items()}
    paths |= {
        "mcr/__init__.py": "import mcr.data.a",
        "mcr/models/sound.py": "import mcr.data.a, mcr",
    }
    assert circles(paths) == [[f"mcr.data.{name}" for name in circle]]


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
