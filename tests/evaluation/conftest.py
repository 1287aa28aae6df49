"""Without MetaWorld and robosuite, `test_success_rates`, which runs them, is not collected.

`bash scripts/test.sh simulators` installs them and runs it.
"""

import importlib.util

INSTALLED = all(map(importlib.util.find_spec, ("metaworld", "robosuite")))
if not INSTALLED:
    collect_ignore = ["test_success_rates.py"]


def pytest_configure(config):
    if INSTALLED:  # the simulators, numba and MuJoCo's bindings warn about themselves
        config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
