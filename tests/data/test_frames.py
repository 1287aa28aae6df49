"""Frames are read with few open files, and from a file system that fails for a moment."""

import re
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest

from mcr.data import frames
from mcr.data.frames import FrameReader
from mcr.data.index import open_index
from mcr.errors import UserError

NUM_SHARDS = 100
READ_ALL = """
import os, sys
from mcr.data.frames import FrameReader
from mcr.data.index import Index
index = Index(sys.argv[1])
reader = FrameReader(index)
for _ in range(2):
    for row in range(len(index)):
        reader.read(row, 0, 0)
print(len(os.listdir("/proc/self/fd")))
"""


@pytest.fixture
def many_shards(make_dataset, make_features, file_path, tmp_path):
    """The index of a data set whose shards hold one episode of one step each."""
    episodes = [[make_features(1, file_path(second))] for second in range(NUM_SHARDS)]
    return open_index(make_dataset(episodes), tmp_path / "index", workers=1).path


@pytest.mark.parametrize(
    "soft, hard, fewest, most",
    [(64, 4096, NUM_SHARDS, 4096), (64, 64, 1, 64)],
    ids=["limit can be raised", "limit cannot be raised"],
)
def test_more_shards_than_files_may_be_open(many_shards, soft, hard, fewest, most):
    result = subprocess.run(
        [sys.executable, "-c", READ_ALL, many_shards],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    assert result.returncode == 0, result.stderr
    assert fewest <= int(result.stdout) <= most


@pytest.fixture
def failing(shards, tmp_path, monkeypatch):
    """(index, repair): reads of the first shard fail with EIO until `repair` is called."""
    index = open_index(shards)
    shard = shards / index.files[0].decode()
    shard.rename(tmp_path / "whole")
    shard.symlink_to("/proc/self/mem")  # nothing is mapped at the offsets of its first frames
    monkeypatch.setattr(frames, "_WAITS_S", (0.0, 1.0))

    def repair():
        (tmp_path / "link").symlink_to(tmp_path / "whole")
        (tmp_path / "link").rename(shard)

    return index, repair


def test_a_transient_read_error_is_retried_and_reported(failing, capfd):
    index, repair = failing
    row = int(np.flatnonzero(index.frame_files[:, 0] == 0)[0])
    repairer = threading.Timer(0.2, repair)
    repairer.start()
    pixels = FrameReader(index).read(row, 0, 0)
    repairer.join()
    assert np.array_equal(pixels, FrameReader(index).read(row, 0, 0))
    told = capfd.readouterr().err
    assert len(re.findall(r"-00000-of-00002, episode .*Input/output error; again in", told)) == 2


def test_a_lasting_read_error_is_raised(failing):
    index, _ = failing
    row = int(np.flatnonzero(index.frame_files[:, 0] == 0)[0])
    with pytest.raises(UserError, match=r"-00000-of-00002, episode .*Input/output error"):
        FrameReader(index).read(row, 0, 0)
