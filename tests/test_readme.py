"""The pages say nothing that is not so: code runs, commands would be accepted, links exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from PIL import Image

import mcr
from mcr.cli import COMMANDS, import_command, parse
from mcr.commands.train import pop_gpus
from mcr.data.mixture import data_sets
from mcr.policies.config import RENAMED as RENAMED_BC
from mcr.policies.config import Config as BehaviourCloning
from mcr.release.export import export_encoder
from mcr.runs.options import addable, check_overrides
from mcr.training.config import RENAMED, Config
from tests.recipes import composed

ROOT = Path(__file__).parents[1]
MCR = ROOT / "mcr"
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]
RESULTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "resources").glob("*.md"))
# The Python of these pages needs an extra: tests/robomimic/test_guide.py and
# tests/lerobot/test_lerobot_guide.py run it.
WITH_EXTRAS = ("docs/robomimic.md", "docs/lerobot.md")
WITH_PYTHON = [document for document in DOCUMENTS if document not in WITH_EXTRAS]
# What Hydra reads -> (name of the schema, default recipe, config, renamed keys)
SCHEMAS = {
    "train": ("config", "mcr", Config, RENAMED),
    "bc": ("bc_config", "bc", BehaviourCloning, RENAMED_BC),
}


def blocks(document: str, language: str) -> list:
    """The fenced blocks of a language, named by their first line's number."""
    found = []
    text = (ROOT / document).read_text()
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start(1)].count("\n") + 1
        found.append(pytest.param(match[1], id=f"{document}:{line}"))
    return found


# --------------------------------------------------------------------------- Python


@pytest.fixture(scope="module")
def desk(tmp_path_factory, reference) -> Path:
    """A folder with the files that the pages' examples name."""
    folder = tmp_path_factory.mktemp("desk")
    for name, path in (("resnet18", "resnet18.pth"), ("resnet50", "mcr_resnet50.pth")):
        network = getattr(torchvision.models, name)()
        network.fc = torch.nn.Identity()
        torch.save(network.state_dict(), folder / path)
    export_encoder(folder / "resnet18.pth", folder / "my_encoder")
    Image.new("RGB", (320, 180), "teal").save(folder / "picture.png")
    shutil.copytree(reference, folder / "droid" / "1.0.1")
    bridge = Path(__file__).parent / "data/reference/oxe/bridge_like/1.0.0"
    shutil.copytree(bridge, folder / "bridge_dataset" / "1.0.0")
    return folder


def check_shapes(source: str, names: dict) -> int:
    """Compare each `name = ...  # [2, 512] ...` with the shape of the value; how many there are."""
    claims = re.findall(r"^(\w+) = .*#.*?\[([\d, ]+)\]", source, re.MULTILINE)
    for name, shape in claims:
        assert list(names[name].shape) == [int(size) for size in shape.split(",")], name
    return len(claims)


@pytest.mark.parametrize(
    "source", [block for document in WITH_PYTHON for block in blocks(document, "python")]
)
def test_python_block_runs(source, desk, monkeypatch, recwarn):
    monkeypatch.chdir(desk)
    names = {"__name__": "page"}
    exec(compile(source, "page", "exec"), names)
    check_shapes(source, names)
    ours = [w for w in recwarn if w.filename == "page" or Path(w.filename).is_relative_to(MCR)]
    assert all("load_mcr returns the bare network" in str(w.message) for w in ours)


def test_claimed_shapes_are_compared():
    source = "x = f()  # a batch [2, 3]\ny = x\n"
    assert check_shapes(source, {"x": torch.zeros(2, 3), "y": None}) == 1
    with pytest.raises(AssertionError):
        check_shapes(source, {"x": torch.zeros(3, 2), "y": None})


# --------------------------------------------------------------------------- bash

FOREIGN = {  # programs of others
    *("git", "grep", "mypy", "pip", "pre-commit", "ray", "ruff", "sbatch", "source"),
    *("tensorboard", "lerobot-train", "lerobot-eval"),
}


def check_command(line: str) -> None:
    """Raise AssertionError or UserError for a command that would not be accepted as it stands."""
    words = shlex.split(line, comments=True)
    if words[0] == "mcr":
        check_mcr(words[1:])
    elif words[0] in FOREIGN:
        check_files(words[1:])
    elif words[:3] == ["python", "-m", "pytest"]:
        check_files(words[3:])
    else:
        assert words[0] in ("bash", "python"), f"unknown command {words[0]}"
        script, arguments = words[1], words[2:]
        assert (ROOT / script).is_file(), f"{script} does not exist"
        if script == "scripts/train_mcr.sh":
            check_config("train", arguments)
        else:
            check_flags(script, arguments)


def check_mcr(arguments: list[str]) -> None:
    """Parse a command's arguments, or compose its configuration, as the command would."""
    command, rest = arguments[0], arguments[1:]
    if rest == ["--help"] or command == "--help":
        assert command in (*COMMANDS, "--help")
    elif command in SCHEMAS:
        check_config(command, rest)
    else:
        assert command in COMMANDS, f"mcr has no command {command}"
        parse(import_command(command), rest, f"mcr {command}")


def check_files(words: list[str]) -> None:
    """Those that look like a path of this repository must be one."""
    for word in words:
        is_ours = word.endswith((".py", ".txt")) or word.startswith(("mcr/", "tests", "scripts"))
        assert not is_ours or (ROOT / word).exists(), f"{word} does not exist"


def check_flags(script: str, arguments: list[str]) -> None:
    flags = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(script))) if flags else set()
    for flag in flags:
        assert flag in known, f"{script} has no option {flag}"


@cache
def help_of(script: str) -> str:
    """With this Python as the active environment, so that no script makes or changes one."""
    program = ["bash"] if script.endswith(".sh") else [sys.executable]
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    active = {"VIRTUAL_ENV": sys.prefix, "PATH": os.pathsep.join(folders), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*program, script, "--help"],
        cwd=ROOT,
        env=os.environ | active,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def check_config(command: str, arguments: list[str]) -> None:
    """Compose the configuration as the command would, values and their types included."""
    arguments = list(arguments)
    schema, recipe, config_class, renamed = SCHEMAS[command]
    if "--config-name" in arguments:
        place = arguments.index("--config-name")
        recipe = arguments.pop(place + 1)
        arguments.pop(place)
    pop_gpus(arguments)
    if arguments == ["--help"]:
        return
    check_overrides(arguments, config_class, renamed)
    ConfigStore.instance().store(name=schema, node=config_class)
    config = composed(recipe, addable(arguments, config_class))
    assert isinstance(config, config_class)
    if command == "train":
        data_sets(config.data)


def commands(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize(
    "block", [block for document in DOCUMENTS for block in blocks(document, "bash")]
)
def test_bash_block_would_be_accepted(block):
    for line in commands(block):
        for command in line.split(" && "):
            check_command(command)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("bash scripts/dmeo.sh", "dmeo.sh does not exist"),
        ("mcr exprot a b", "no command exprot"),
        ("mcr export a b --forse", "no option --forse"),
        ("mcr extract a b --workers many", "must be a whole number"),
        ("python scripts/export.py a b --forse", "no option --forse"),
        ("python scripts/process_data_multicore.py a b --work 2", "no option --work"),
        ("mcr train data.root=x batchsize=3", "did you mean 'batch_size'"),
        (
            "mcr bc observations.encodr=y",
            "did you mean 'observations.encoder'",
        ),
        ("bash scripts/download_droid.sh /data --smaple", "no option --smaple"),
        ("bash scripts/train_mcr.sh data.root=x batchsize=3", "did you mean 'batch_size'"),
        ("bash scripts/train_mcr.sh data.root=x steps=many", "many"),
        ("bash scripts/train_mcr.sh batch_size=3", "data.root is not set"),
        ("bash scripts/train_mcr.sh --config-name papers data.root=x", "papers"),
        ("pip install -r requirements.txt", "requirements.txt does not exist"),
        ("python -m pytest tests/test_nothing.py", "does not exist"),
        ("curl https://example.org", "unknown command"),
    ],
)
def test_a_wrong_command_is_found(command, complaint):
    with pytest.raises(Exception, match=complaint):  # UserError, AssertionError, Hydra's own
        check_command(command)


# --------------------------------------------------------------------------- links and paths


def anchors(document: Path) -> set[str]:
    """GitHub's names of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: str, text: str) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / document).parent / file if file else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    return broken


def missing_paths(text: str) -> list[str]:
    """Paths of this repository in `code` that are not there."""
    paths = re.findall(
        r"`((?:benchmarks|cfgs|docs|mcr|resources|scripts|tests)/[\w./-]*|\w+\.(?:toml|txt))`", text
    )
    return [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("document", [*DOCUMENTS, *RESULTS])
def test_links_and_paths_exist(document):
    text = (ROOT / document).read_text()
    assert broken_links(document, text) == []
    assert missing_paths(text) == []


def test_a_broken_link_is_found():
    text = "[a](LICENSE) [b](nowhere.md) [c](README.md#install) [d](#no-such) `mcr/data/x.py`"
    assert broken_links("README.md", text) == ["nowhere.md", "#no-such"]
    assert missing_paths(text) == ["mcr/data/x.py"]


def test_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


# --------------------------------------------------------------------------- files beside the pages


def test_versions_agree():
    setup = re.search(r'version="(.+)"', (ROOT / "setup.py").read_text())[1]
    changes = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    citation = OmegaConf.load(ROOT / "CITATION.cff")
    assert {setup, changes, citation.version} == {mcr.__version__}


def test_the_paper_is_cited_alike():
    paper = OmegaConf.load(ROOT / "CITATION.cff")["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    assert f"{{{paper.title}}}".lower() in readme.lower()
    authors = [f"{author['given-names']} {author['family-names']}" for author in paper.authors]
    assert f"{{{' and '.join(authors)}}}" in readme


def test_a_commit_is_checked_as_the_tests_check():
    hooks = OmegaConf.load(ROOT / ".pre-commit-config.yaml").repos[0].hooks
    lines = map(str.strip, (ROOT / "scripts/test.sh").read_text().splitlines())
    assert [hook.entry for hook in hooks] == [
        line for line in lines if line.startswith(("ruff", "mypy"))
    ]
