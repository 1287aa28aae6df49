"""That the installed LeRobot is one that the package was made for."""

import importlib.metadata
import importlib.util

import pytest

WITHOUT = "LeRobot is not installed: `bash scripts/test.sh lerobot` runs these tests"


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is None, reason=WITHOUT)
def test_version_is_known():
    from mcr.lerobot.compatibility import LEROBOT_VERSIONS, require_lerobot

    assert importlib.metadata.version("lerobot") in LEROBOT_VERSIONS
    require_lerobot()
