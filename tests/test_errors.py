"""Errors that a user can fix: their messages, and how a command line shows them."""

import errno

import pytest

from mcr.errors import UserError, command_line, import_extra, nearest, plain_errors, require_choice


def test_the_nearest_name_is_suggested_or_all_are_listed():
    assert nearest("resnet81", ["vit_s_16", "resnet18"]) == "; did you mean 'resnet18'?"
    assert nearest("x", ["b", "a"]) == "; choose from: a, b"


def test_require_choice_returns_the_value_or_names_the_choices():
    assert require_choice("idle", "drop", ("keep", "drop")) == "drop"
    with pytest.raises(UserError, match="idle='drp' is unknown; did you mean 'drop'?"):
        require_choice("idle", "drp", ("keep", "drop"))


def test_a_missing_package_is_named_with_the_extra_that_installs_it():
    with pytest.raises(UserError, match=r"needs no_such_package.*pip install 'mcr\[video\]'"):
        import_extra("no_such_package.part", "video")


def test_a_package_that_breaks_while_it_is_imported_raises_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "package_that_breaks.py").write_text("import what_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        import_extra("package_that_breaks", "video")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (UserError("a.txt: empty; fill it"), "error: a.txt: empty; fill it\n"),
        (KeyboardInterrupt(), "error: interrupted\n"),
        (OSError(errno.ENOSPC, "No space left", "a.txt"), "error: a.txt: No space left; free some"),
    ],
)
def test_errors_that_a_user_can_fix_are_one_line_and_exit_code_2(capsys, error, shown):
    with pytest.raises(SystemExit) as exit, plain_errors():
        raise error
    assert exit.value.code == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(shown) and output.err.count("\n") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EPIPE, "Broken pipe")])
def test_other_errors_are_bugs_and_keep_their_traceback(error):
    with pytest.raises(type(error)), plain_errors():
        raise error


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (1, 1)])
def test_a_program_exits_with_what_its_main_returns(returned, code):
    with pytest.raises(SystemExit) as exit:
        command_line(lambda: returned)()
    assert exit.value.code == code
