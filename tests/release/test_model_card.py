"""The model card states what is known of an encoder, and what is not."""

from __future__ import annotations

from mcr.models import catalogue
from mcr.release import model_card
from mcr.release.export import export_encoder


def test_the_facts_of_a_training_checkpoint(checkpoint, save, tmp_path):
    export = export_encoder(save(checkpoint), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        "sample_droid",
        "abc123",
        "| 16 |",
        "| 1200 |",
        "| contrast 0.5 |",
        "mcr 0.1.0",
        export.sha256,
    ):
        assert fact in card
    assert 'mcr.load_model("out")' in card and "data.root |" not in card
    assert "Licence" in card and "None" not in card


def test_a_foreign_file_says_that_its_history_is_unknown(released, tmp_path):
    export_encoder(released, tmp_path / "out")
    assert "| steps | not recorded in the file |" in (tmp_path / "out" / "README.md").read_text()


def test_licences_of_published_weights_are_stated(released, tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "identify", lambda _: catalogue.MODELS["vc1_vitb"])
    export_encoder(released, tmp_path / "out")
    assert "| weights | CC BY-NC 4.0 |" in (tmp_path / "out" / "README.md").read_text()
