"""Whether a run may go on in its folder."""

from pathlib import Path

import pytest

from mcr.errors import UserError
from mcr.runs.options import check_resume, require_same_config


def test_resume_never_refuses_a_used_folder_only():
    check_resume(Path("run"), "never", is_used=False)
    check_resume(Path("run"), "auto", is_used=True)
    with pytest.raises(UserError, match="run: holds a run; choose another run_dir or resume=auto"):
        check_resume(Path("run"), "never", is_used=True)
    with pytest.raises(UserError, match="resume='no' is unknown"):
        check_resume(Path("run"), "no", is_used=False)


def test_a_changed_config_is_refused_with_old_and_new_values():
    old = {"lr": 0.1, "workers": 1, "data": {"views": ["left"]}}
    new = {"lr": 0.2, "workers": 2, "data": {"cameras": ["left"]}}
    renamed = {"data.views": "data.cameras"}
    with pytest.raises(UserError, match="\n  lr: 0.1 -> 0.2\nchoose another run_dir$"):
        require_same_config(Path("run"), old, new, ("workers",), renamed)
    require_same_config(Path("run"), old, new | {"lr": 0.1}, ("workers",), renamed)
