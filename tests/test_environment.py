"""`scripts/environment.sh` in real virtual environments: what it uses, refuses and leaves alone."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VARIABLES = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME")


def make_environment(folder: Path) -> Path:
    """An environment without pip, so that nothing can be installed into it."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


def packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def add_to_path(environment: Path, *folders: Path) -> None:
    """What lies in these folders counts as installed, the first before the second."""
    (packages(environment) / "added.pth").write_text("".join(f"{path}\n" for path in folders))


def source(
    checkout: Path, active: Path | None, extras: str = "", **variables
) -> subprocess.CompletedProcess:
    """Source the script as the others do, with an active environment or none; print its Python."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    if active:
        environment["VIRTUAL_ENV"] = str(active)
        environment["PATH"] = f"{active / 'bin'}{os.pathsep}{environment['PATH']}"
    script = shlex.quote(str(checkout / "scripts" / "environment.sh"))
    command = f"set -euo pipefail; extras={extras}; source {script}; command -v python; pwd"
    return subprocess.run(
        ["bash", "-c", command],
        cwd="/",
        env=environment | variables,
        capture_output=True,
        text=True,
    )


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def active(tmp_path) -> Path:
    return make_environment(tmp_path / "active")


@pytest.fixture
def complete(active) -> Path:
    """An environment with this checkout and all that the tests' own environment has."""
    add_to_path(active, ROOT, Path(sysconfig.get_path("purelib")))
    return active


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Another checkout of the project, as far as the script looks at it."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "mcr").mkdir()
    for name in ("setup.py", "mcr/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_complete_environment_is_used_and_left_as_it_is(complete):
    before = files(complete)
    result = source(ROOT, complete)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(complete / "bin" / "python"), str(ROOT)]
    assert files(complete) == before


def test_an_empty_environment_is_refused_with_the_command_that_fills_it(active):
    before = files(active)
    result = source(ROOT, active, extras="dev,robosuite")
    assert result.returncode == 2 and result.stdout == ""
    assert f"error: the active environment, {active}, does not fit this checkout" in result.stderr
    for complaint in ("mcr is not installed", "torch>=2.6 is not", "pytest>=8 is not", "mujoco"):
        assert complaint in result.stderr
    command = [str(active / "bin/python"), "-m", "pip", "install"]
    command += ["--editable", f"{ROOT}[dev,robosuite]"]
    assert f"    {shlex.join(command)}\n" in result.stderr
    assert files(active) == before


def test_without_extras_only_what_mcr_itself_needs_is_asked_for(active):
    stderr = source(ROOT, active).stderr
    assert "torch>=2.6 is not installed" in stderr and "pytest>=" not in stderr
    assert f"pip install --editable {shlex.quote(str(ROOT))}\n" in stderr


def test_an_editable_install_of_another_checkout_is_refused_and_kept(complete, checkout):
    result = source(checkout, complete)
    assert result.returncode == 2
    assert f"mcr is that of {ROOT}, not of this checkout, {checkout}" in result.stderr
    assert f"pip install --editable {shlex.quote(str(checkout))}\n" in result.stderr
    assert "is not installed" not in result.stderr
    assert source(checkout, complete, PYTHONPATH=str(checkout)).returncode == 0


def test_a_wrong_version_is_named_and_alone_in_the_command(complete):
    metadata = packages(complete) / "einops-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: einops\nVersion: 0.1\n")
    result = source(ROOT, complete)
    assert result.returncode == 2
    assert "einops>=0.7 is needed, but 0.1 is installed\n" in result.stderr
    assert "-m pip install 'einops>=0.7'\n" in result.stderr


def test_an_environment_whose_python_is_gone_is_named(tmp_path):
    (tmp_path / "bin").mkdir()
    for program in ("bash", "dirname"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program))
    result = source(ROOT, tmp_path, PATH=str(tmp_path / "bin"))
    assert result.returncode == 2
    assert f"the active environment, {tmp_path}, has no python on PATH" in result.stderr


@pytest.mark.parametrize("is_active", [False, True])
def test_only_the_projects_own_environment_is_installed_into(checkout, is_active):
    """There is no pip in it, so nothing is installed, but pip is asked for."""
    own = make_environment(checkout / ".venv")
    result = source(checkout, own if is_active else None)
    assert "installing mcr and what it needs" in result.stdout
    assert f"{own / 'bin/python'}: No module named pip" in result.stderr
    assert result.returncode == 1


def test_without_an_active_environment_one_is_made_in_the_checkout(checkout, tmp_path):
    """By the `python3` on PATH, which leaves out pip here, so that nothing is installed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    without_pip = f'[ "$2" = venv ] && set -- "$@" --without-pip\nexec "{sys.executable}" "$@"\n'
    (programs / "python3").write_text(f"#!/bin/sh\n{without_pip}")
    (programs / "python3").chmod(0o755)
    result = source(checkout, None, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    assert "making a virtual environment in .venv (Python 3." in result.stdout
    assert f"{checkout / '.venv/bin/python'}: No module named pip" in result.stderr


def test_an_environment_that_was_installed_is_used_at_once(checkout):
    own = make_environment(checkout / ".venv")
    stamp = 'touch ".venv/.mcr-dev-$(cksum <setup.py | tr -d " ")-$(pwd | cksum | tr -d " ")"'
    subprocess.run(["bash", "-c", stamp], cwd=checkout, check=True)
    result = source(checkout, None)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(own / "bin" / "python"), str(checkout)]
