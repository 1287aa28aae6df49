"""Tests that run MetaWorld and robosuite. Without both of them none is collected.

`bash scripts/test.sh simulators` installs them and runs these alone.
"""

import importlib.util

if any(importlib.util.find_spec(name) is None for name in ("metaworld", "robosuite")):
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config):
    # the simulators, numba and MuJoCo's bindings warn of matters of their own
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
