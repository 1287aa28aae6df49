"""scripts/download_droid.sh with the real gsutil, from an emulator of Google's store.

    bash scripts/test.sh download

What the emulator is not: it answers one request after the other, never with "try again later", and
keeps no composite objects. Of those, which have no MD5, the test takes the MD5 away.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from mcr.data.tfrecord import write_records
from tests.download.store import Store
from tests.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "download_droid.sh"
PLACE = "robotics/droid_100/1.0.0"
TOOLS = os.environ.get("MCR_DOWNLOAD_TOOLS", "")  # folder of gsutil and the emulator
SHARD = "big-train.tfrecord-{:05}-of-00003"
NUM_BYTES = 4_000_000  # of a shard


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> dict[str, bytes]:
    """What the store holds: the sample's two JSON files, and three shards of random records."""
    folder, rng = tmp_path_factory.mktemp("objects"), np.random.default_rng(0)
    sample = ROOT / "resources" / "sample_droid" / "1.0.0"
    for name in ("features.json", "dataset_info.json"):
        shutil.copy(sample / name, folder)
    for number in range(3):
        write_records(folder / SHARD.format(number), [rng.bytes(NUM_BYTES // 4)] * 4)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if not TOOLS:
        pytest.skip("needs gsutil and an emulator of the store: bash scripts/test.sh download")
    store = Store(tmp_path_factory.mktemp("store"), Path(TOOLS) / "gcp-storage-emulator")
    yield store
    store.close()


@pytest.fixture
def store(running, objects) -> Store:
    running.line.mend()
    for name, content in objects.items():
        running.put(f"{PLACE}/{name}", content)
    return running


class User:
    """Somebody who downloads to a folder of their own."""

    def __init__(self, store: Store, folder: Path, slices: str = "0"):
        self.store, self.folder = store, folder
        self.data = folder / "data" / "droid_100" / "1.0.0"
        self.environment = os.environ | {
            "PATH": f"{TOOLS}:{os.environ['PATH']}",
            "HOME": str(folder),  # where gsutil notes how far it came
            "BOTO_CONFIG": str(store.boto(slices)),
        }
        self.environment.pop("HTTPLIB2_CA_CERTS", None)  # gsutil would prefer it to the boto file

    def begin(self, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", SCRIPT, self.folder / "data", "--sample", *options],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def download(self, *options: str) -> tuple[int, str]:
        """The exit code, and what was printed."""
        process = self.begin(*options)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def begin_until(self, num_bytes: int) -> subprocess.Popen:
        """A download whose line hangs after that many bytes."""
        self.store.line.mend()
        self.store.line.stop_after = num_bytes
        process = self.begin()
        wait_for(self.store.line.stopped.is_set, process)
        seen = -1
        while seen != (seen := self.on_disk()):  # what was sent is still being written
            time.sleep(1)
        return process

    def on_disk(self) -> int:
        """How many bytes are there, of whole files and of parts."""
        return sum(path.stat().st_blocks * 512 for path in self.data.glob("*"))

    def assert_complete(self, objects: dict[str, bytes]) -> None:
        code, output = self.download()
        assert code == 0 and f"complete: {self.data}, 5 files" in output, output
        assert {path.name for path in self.data.iterdir()} == set(objects)
        assert all((self.data / name).read_bytes() == content for name, content in objects.items())


@pytest.fixture
def user(store, tmp_path) -> User:
    return User(store, tmp_path)


def test_whole(user, store, objects):
    for name in objects:
        store.state(f"{PLACE}/{name}", md5Hash="")  # as of composite objects
    user.assert_complete(objects)
    store.line.mend()
    user.assert_complete(objects)
    assert store.line.sent == 0, "nothing is fetched twice"


# gsutil notes how far a slice came only now and then, so the slices under way may begin anew.
@pytest.mark.parametrize(("slices", "lost"), [("0", 50_000), ("2M", 4_100_000)])
def test_killed_and_continued(store, tmp_path, objects, slices, lost):
    user, total = User(store, tmp_path, slices), sum(map(len, objects.values()))
    for _ in range(2):
        process = user.begin_until(total // 3)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)  # until the last of its processes is gone
        for path in user.data.glob("*-of-00003"):  # under its name only if it is whole
            assert path.read_bytes() == objects[path.name]
    store.line.mend()
    kept = user.on_disk()
    user.assert_complete(objects)
    assert kept > total // 4
    assert store.line.sent < total - kept + lost, "what had arrived was fetched again"


def test_broken_line_and_continued(user, store, objects):
    process = user.begin_until(2 * NUM_BYTES)
    store.line.is_broken = True
    store.line.stop_after = None
    store.line.release()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output.endswith("see above; run the same command again to continue\n")
    store.line.mend()
    user.assert_complete(objects)


def test_corrupted_object(user, store, objects):
    """The store's CRC32C is not that of the bytes that arrive."""
    name = SHARD.format(1)
    store.state(f"{PLACE}/{name}", crc32c=base64.b64encode(b"oops").decode(), md5Hash="")
    code, output = user.download()
    assert code == 2 and "doesn't match cloud-supplied digest" in output
    assert output.endswith("see above; run the same command again to continue\n")
    assert {path.name for path in user.data.iterdir()} == set(objects) - {name}
    store.put(f"{PLACE}/{name}", objects[name])
    user.assert_complete(objects)


def test_damaged_on_the_disk(user, store, objects):
    user.assert_complete(objects)
    bad, short = (user.data / SHARD.format(number) for number in (0, 2))
    content = bytearray(bad.read_bytes())
    content[NUM_BYTES // 2] ^= 1
    bad.write_bytes(content)
    os.truncate(short, NUM_BYTES // 2)
    code, output = user.download()
    assert code == 2 and f"1 files have not the store's size, {short} first" in output
    store.line.mend()
    code, output = user.download("--check")
    assert code == 0 and f"complete: {user.data}, 5 files" in output
    assert store.line.sent < 2.1 * NUM_BYTES, "only the two are fetched"
    user.assert_complete(objects)


def test_missing_shard(user, store, objects):
    name = SHARD.format(1)
    user.assert_complete(objects)
    (user.data / name).unlink()
    store.line.mend()
    user.assert_complete(objects)
    assert NUM_BYTES <= store.line.sent < 1.1 * NUM_BYTES, "only the one is fetched"
    (user.data / name).unlink()
    store.remove(f"{PLACE}/{name}")
    code, output = user.download()
    assert code == 2 and output.endswith(f"error: {user.data}: the store has only 2 of 3 shards\n")


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for all and 2 MB more; one may be filled."""
    place = tmp_path / "data"
    place.mkdir()
    size = f"size={3 * NUM_BYTES + 2_000_000}"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted")
    yield place
    subprocess.run(["umount", place], check=True)


def test_no_space(user, store, objects, small_disk):
    (small_disk / "other").write_bytes(bytes(4_000_000))
    code, output = user.download()
    assert code == 2 and store.line.sent == 0
    assert "0.012 GB are needed but only 0.010 GB are free" in output
    (small_disk / "other").unlink()

    process = user.begin_until(NUM_BYTES)
    with (small_disk / "other").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(65536))
    store.line.stop_after = None
    store.line.release()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "No space left on device" in output
    assert output.endswith("see above; run the same command again to continue\n")
    (small_disk / "other").unlink()
    user.assert_complete(objects)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "give the OUTPUT folder"),
        (["a", "b"], "give one OUTPUT folder"),
        (["a", "--fast"], "unknown option --fast"),
        (["a", "--version"], "--version needs a value"),
        (["a", "--version", "2.0.0"], "--version 2.0.0: give 1.0.0 or 1.0.1"),
    ],
)
def test_mistakes(words, complaint, tmp_path):
    result = subprocess.run(["bash", SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == "" and complaint in result.stderr
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_made(user):
    (user.folder / "data").write_text("a file")
    code, output = user.download()
    assert code == 2 and f"error: {user.data} cannot be made" in output
