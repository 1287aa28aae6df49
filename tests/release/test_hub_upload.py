"""Uploads to a server on localhost that acts as the Hub, by the client's LFS protocol.

The client prefers Xet where hf_xet is installed; that protocol has no stand-in here, so it is
switched off.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
from urllib.parse import unquote, urlsplit

import pytest
import torch

import mcr
from mcr.commands import export as export_command
from mcr.errors import UserError
from mcr.models.backbones import build_backbone
from mcr.release.export import export_encoder
from tests import hub_server

constants = pytest.importorskip("huggingface_hub.constants")

COMMIT = "c" * 40


class Handler(hub_server.Handler):
    """Also accepts uploads: large files by LFS, the others inside the commit."""

    def do_POST(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(f"POST /{path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "api/repos/create":
            self.create(json.loads(body))
        elif path == "api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self.choose_modes(json.loads(body)["files"])
        elif path.endswith("/info/lfs/objects/batch"):
            self.offer_storage(json.loads(body)["objects"])
        else:
            self.commit_files(path, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.stored[self.path.rpartition("/")[2]] = body
        self.reply(200, b"", {})

    def create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] == "forbidden":
            self.reply(403, json.dumps({"error": "not your organisation"}).encode(), {})
            return
        (self.server.root / name).mkdir(parents=True, exist_ok=True)
        self.server.private[name] = wanted.get("private") or wanted.get("visibility") == "private"
        self.answer_json({"url": f"{self.server.url}/{name}"})

    def choose_modes(self, files):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > 1_000_000 else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self.answer_json({"files": modes})

    def offer_storage(self, objects):
        offers = [
            item | {"actions": {"upload": {"href": f"{self.server.url}/store/{item['oid']}"}}}
            for item in objects
        ]
        self.answer_json({"transfer": "basic", "objects": offers})

    def commit_files(self, path, operations):
        repository = path.removeprefix("api/models/").partition("/commit/")[0]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                content = self.server.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
            else:
                continue
            (self.server.root / repository / value["path"]).write_bytes(content)
        self.server.revisions["main"] = COMMIT
        self.answer_json({"commitOid": COMMIT, "commitUrl": f"{self.server.url}/{repository}"})

    def answer_json(self, answer):
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    with hub_server.HubServer(tmp_path / "hub") as server:
        server.RequestHandlerClass = Handler
        server.stored, server.private = {}, {}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def folder(small_checkpoint, tmp_path):
    return export_encoder(small_checkpoint, tmp_path / "encoder").path


def test_an_upload_is_loaded_again(hub, folder):
    (folder / "notes.txt").write_text("not for the public")
    address = mcr.push_to_hub(folder, "lab/encoder", private=True)
    assert address == f"hf:lab/encoder@{COMMIT}" and hub.private == {"lab/encoder": True}
    assert sorted(path.name for path in (hub.root / "lab" / "encoder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
    ]
    assert len(hub.stored) == 1  # the weights
    images = torch.rand(2, 3, 80, 80)
    assert torch.equal(mcr.load_model(address)(images), mcr.load_model(folder)(images))
    verification = mcr.verify(address)
    assert verification.ok and "as exported" in str(verification)


def export(*arguments: str) -> None:
    """`mcr export` in this process."""
    parser = argparse.ArgumentParser()
    export_command.add_arguments(parser)
    export_command.run(parser.parse_args(arguments))


def test_an_upload_is_shown_before_it_happens(hub, small_checkpoint, tmp_path, monkeypatch, capsys):
    command = [str(small_checkpoint), str(tmp_path / "out"), "--force", "--push", "lab/encoder"]
    with pytest.raises(UserError, match="nothing was uploaded: look at .* add --yes"):
        export(*command)  # nobody is at the terminal
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    with pytest.raises(UserError, match="nothing was uploaded; .*out is kept"):
        export(*command)
    assert hub.requests == []
    shown = capsys.readouterr().out
    for name in ("README.md", "config.json", "recipe.yaml"):
        assert (tmp_path / "out" / name).read_text() in shown
    assert "show to everyone" in shown and "model.safetensors  44," in shown
    export(*command, "--yes")
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    export(*command, "--private")
    assert capsys.readouterr().out.count("uploaded:  mcr.load_model") == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_an_export_of_an_earlier_version_is_not_published(hub, folder):
    config = json.loads((folder / "config.json").read_text())
    config["mcr"]["training"]["launch"] = {"command": "mcr train data.root=/home/ada/droid"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="holds the command line or folders of its run"):
        mcr.push_to_hub(folder, "lab/encoder")
    assert hub.requests == []
    again = export_encoder(folder, folder.with_name("again")).path
    assert mcr.push_to_hub(again, "lab/encoder").startswith("hf:lab/encoder@")


def test_an_untrained_encoder_is_not_uploaded(hub, tmp_path):
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "random.pth")
    folder = export_encoder(tmp_path / "random.pth", tmp_path / "random").path
    with pytest.raises(UserError, match="not uploaded, because it fails verification"):
        mcr.push_to_hub(folder, "lab/random")
    assert hub.requests == []


def test_a_folder_that_is_not_an_export_is_not_uploaded(hub, tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json; give a folder that"):
        mcr.push_to_hub(tmp_path, "lab/encoder")


def test_the_hubs_refusal_is_passed_on(hub, folder):
    with pytest.raises(UserError, match="forbidden/encoder: the Hub refused: .*not your organ"):
        mcr.push_to_hub(folder, "forbidden/encoder")
    with pytest.raises(UserError, match="is not a valid name of a repository"):
        mcr.push_to_hub(folder, "a/b/c")


def test_a_hub_that_cannot_be_reached_at_upload(folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        mcr.push_to_hub(folder, "lab/encoder")
