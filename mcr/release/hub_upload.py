"""Upload: an export's folder -> a repository on the Hugging Face Hub, to be loaded by `hf:`.

HF_ENDPOINT is respected, the token is left to the library (`hf auth login`, or HF_TOKEN). Needs
`pip install 'mcr[hub]'`. Reading from the Hub is in `models.hub`.
"""

from __future__ import annotations

import os
from pathlib import Path

from mcr.errors import UserError, import_extra
from mcr.models.layouts import CONFIG_NAME, WEIGHTS_NAME
from mcr.release.export import EXPORT_FILES
from mcr.release.verify import verify


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> str:
    """Upload the export in `folder` to `repository` ("organisation/name"), made if need be.

    Returns what `load_model` takes: "hf:organisation/name@revision", the commit just made.
    Raises UserError if the folder is no export, the encoder is not what it claims to be
    (`verify`), or the Hub refuses.
    """
    hub, errors = (import_extra(f"huggingface_hub{part}", "hub") for part in ("", ".errors"))
    folder = Path(folder).expanduser()
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: has no {missing[0]}; give a folder that scripts/export.py wrote"
        )
    if not (verification := verify(folder)).ok:
        raise UserError(f"{folder}: not uploaded, because it fails verification:\n{verification}")
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(EXPORT_FILES),
            commit_message="Upload an encoder exported by mcr",
        )
    except errors.HFValidationError as error:
        raise UserError(f"{repository}: is no name for a repository: {error}") from error
    except errors.HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{repository}: the Hub refused: {reason}; log in with `hf auth login`, and check the "
            "name of the organisation"
        ) from error
    except Exception as error:  # of whichever HTTP library this version of the client uses
        if not _is_of_the_network(error):
            raise
        raise UserError(f"{repository}: the Hub cannot be reached ({error}); try again") from error
    return f"hf:{repository}@{commit.oid}"


def _is_of_the_network(error: BaseException | None) -> bool:
    """Somewhere below it the operating system failed to connect, send or receive."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error is not None
