"""Extraction and indexing on a real Ray cluster of two nodes, which loses processes and a node."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mcr.data.extract import extract
from mcr.data.index import build_index
from mcr.data.sources import open_source
from mcr.errors import UserError
from mcr.runs import ray_executor
from mcr.runs.ray_executor import ray_cluster, ray_map
from tests.waiting import PATIENCE_S, wait_for

SCRIPT = Path(__file__).parents[2] / "scripts" / "process_data_multicore.py"
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of a head and a second node with one core each, at $RAY_ADDRESS."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")  # or Ray writes a token to the home folder
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        cluster.second = cluster.add_node(**NODE)
        environment.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def large(make_large) -> Path:
    """48 episodes of up to 40 steps in 16 shards, to kill a run in."""
    return make_large(num_shards=16, episodes=3, length=40)


@pytest.fixture(scope="module")
def whole(large, tmp_path_factory, digest) -> dict[str, str]:
    """The digest of the tree that this machine alone makes."""
    tree = tmp_path_factory.mktemp("whole") / "tree"
    assert extract(large, tree, workers=2).counts["written"] == 48
    return digest(tree)


def start(large: Path, tree: Path) -> subprocess.Popen:
    """Start the script in its own process group, and wait for its first episode."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, large, tree, "--engine", "ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: list(tree.glob("2*")), process)
    return process


def busy_workers(node) -> list[int]:
    """The processes of a node that are extracting a shard."""
    (raylet,) = node.all_processes["raylet"]
    children = Path(f"/proc/{raylet.process.pid}/task/{raylet.process.pid}/children").read_text()
    titles = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.split()}
    return [pid for pid, title in titles.items() if b"ray::extract_shard" in title]


def count(status: str, stdout: str) -> int:
    return int(re.search(rf"(\d+) {status}\n", stdout)[1])


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_this_machine_alone_can_go_on(
    cluster, large, whole, tmp_path, digest
):
    tree = tmp_path / "tree"
    process = start(large, tree)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, stderr
    assert f"error: interrupted; every episode in {tree} is whole" in stderr
    assert "Traceback" not in stderr
    assert 0 < len(list(tree.glob("2*"))) < 48
    assert not busy_workers(cluster.head_node) + busy_workers(cluster.second)
    extract(large, tree, workers=2)
    assert digest(tree) == whole


def test_an_index_is_the_same(cluster, large, tmp_path):
    alone = build_index(open_source(large), tmp_path / "alone", workers=1)
    together = build_index(open_source(large), tmp_path / "together", executor="ray")
    for file in alone.path.iterdir():
        assert file.read_bytes() == (together.path / file.name).read_bytes()


def test_a_killed_worker_and_a_lost_node_lose_nothing(cluster, large, whole, tmp_path, digest):
    """This must be the last test that needs both nodes."""
    tree = tmp_path / "tree"
    process = start(large, tree)
    (worker,) = wait_for(lambda: busy_workers(cluster.head_node), process)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: busy_workers(cluster.second), process)
    cluster.remove_node(cluster.second, allow_graceful=False)
    assert len(list(tree.glob("2*"))) < 48, "everything was done before the kills"
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, stderr
    assert digest(tree) == whole
    assert count("written", stdout) + count("already there", stdout) == 48
    assert "48 episodes in 16 shards\n" in stdout
    assert "extracting: 100%" in stderr and "48/48" in stderr
    pages = [json.loads(page.read_text()) for page in Path(f"{tree}.manifest").glob("*-of-*.json")]
    assert [len(page["records"]) for page in pages] == [3] * 16


def test_an_error_on_a_node_is_one_sentence(cluster, tmp_path, monkeypatch):
    with (
        pytest.raises(UserError, match=r"nowhere: No such file.*on the node .*same path; kept"),
        ray_cluster("; kept"),
    ):
        list(ray_map(Path.read_text, [tmp_path / "nowhere"]))

    def kill_itself(item):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ray_executor, "_MAX_RETRIES", 1)
    with (
        pytest.raises(UserError, match="lost its process 2 times.*; kept"),
        ray_cluster("; kept"),
    ):
        list(ray_map(kill_itself, [0]))


def test_an_address_without_a_cluster_is_an_error(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="RAY_ADDRESS=127.0.0.1:1: no Ray cluster"), ray_cluster():
        pass


def test_a_cluster_takes_no_number_of_workers(reference, tmp_path):
    with pytest.raises(UserError, match="--workers 2: a Ray cluster has the cores"):
        extract(reference, tmp_path / "tree", workers=2, executor="ray")
    assert not list(tmp_path.iterdir())
