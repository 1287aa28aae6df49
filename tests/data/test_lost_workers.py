"""A picture on which a library dies costs one episode in every command that looks at it."""

from __future__ import annotations

import os

import pytest

from mcr.data.clean import report
from mcr.data.extract import Options, extract
from mcr.data.index import open_index
from mcr.data.manifest import FAILED
from mcr.data.pack import open_pack
from mcr.data.sources import tree
from mcr.errors import UserError
from tests.data.formats import FORMATS, record_episodes

# A comment in a JPEG. Python runs the fault at the start of a worker: the library then dies on it.
MARK = b"\xff\xfe\x00\x08DEADLY"
FAULT = """
import os, signal, simplejpeg

def deadly(function):
    def call(data, *arguments, **options):
        if b"DEADLY" in bytes(data[:20]):
            os.kill(os.getpid(), signal.SIGSEGV)
        return function(data, *arguments, **options)
    return call

simplejpeg.decode_jpeg = deadly(simplejpeg.decode_jpeg)
simplejpeg.decode_jpeg_header = deadly(simplejpeg.decode_jpeg_header)
"""


def write_shards(folder, step):
    """RLDS shards whose second episode has a deadly picture at a step."""
    episodes = record_episodes()
    jpegs = episodes[1].jpegs["front"]
    jpegs[step] = jpegs[step][:2] + MARK + jpegs[step][2:]
    return FORMATS["rlds"](folder, episodes)


@pytest.fixture
def fault(tmp_path, monkeypatch):
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(FAULT)
    paths = [str(tmp_path / "fault"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def test_extraction_goes_on_without_the_episode(tmp_path, fault):
    shards = write_shards(tmp_path, 2)
    summary = extract(shards, tmp_path / "tree", workers=2)
    done = summary.counts
    assert done["written"] + done["already there"] == 3 and done["failed"] == 1
    (lost,) = [record for _, record in summary.records if record.status == FAILED]
    assert lost.reason.startswith(f"{lost.name}: the process that worked on it was killed twice")
    assert len(list((tmp_path / "tree").glob("*/other_data.pkl"))) == 3


def test_cleaning_and_indexing_go_on_without_the_episode(tmp_path, monkeypatch, request):
    shards = write_shards(tmp_path, 0)
    extract(shards, tmp_path / "tree", Options(format="jpeg"), workers=1)
    request.getfixturevalue("fault")
    findings = report(tmp_path / "tree", workers=2, min_frames=2).findings
    odd = {f.facts.name: f.reasons for f in findings if "killed twice" in str(f.reasons)}
    assert len(findings) == 4 and len(odd) == 1
    monkeypatch.setattr(tree, "_EPISODES_PER_PART", 2)  # so that workers read it
    index = open_index(tmp_path / "tree", workers=2)
    (problem,) = index.info["problems"]
    assert len(index) == 3 and f"{odd.popitem()[0]}: the process that worked on it" in problem


def test_packing_names_the_episode(tmp_path, fault):
    shards = write_shards(tmp_path, 2)
    index = open_index(shards, tmp_path / "index", workers=1)
    with pytest.raises(UserError, match=r"front of \S+: the process that worked on it was killed"):
        open_pack(index, workers=2)
