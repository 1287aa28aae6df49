"""Upload: an export's folder -> a repository on the Hugging Face Hub, which `hf:` loads.

HF_ENDPOINT is respected; the library itself reads the token (`hf auth login`, or HF_TOKEN).
Downloading is in `models.hub`. Needs `pip install 'mcr[hub]'`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mcr.errors import UserError, import_extra
from mcr.models.layouts import CONFIG_NAME, WEIGHTS_NAME
from mcr.release.export import EXPORT_FILES
from mcr.release.publication import public_facts
from mcr.release.verify import verify


def describe_upload(folder: str | Path, repository: str, private: bool = False) -> str:
    """Return what `push_to_hub` would publish: each file with its size, and all that is text.

    Raises UserError if the folder is not an export, or holds more of a run than may be published.
    """
    folder = Path(folder).expanduser()
    _require_export(folder)
    whom = "whom you give access" if private else "everyone"
    lines = [f"what {repository} on the Hub will show to {whom}:"]
    files = [folder / name for name in EXPORT_FILES if (folder / name).is_file()]
    lines += [f"  {file.name}  {file.stat().st_size:,} bytes" for file in files]
    for file in files:
        if file.name != WEIGHTS_NAME:
            lines += [f"--- {file.name}", file.read_text(encoding="utf-8")]
    return "\n".join(lines)


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> str:
    """Upload the export in `folder` to `repository` ("organisation/name"); create it if needed.

    `describe_upload` returns what is uploaded: the files of an export and no others.
    Returns "hf:organisation/name@revision", which `load_model` takes; it names the new commit.
    Raises UserError if the folder is not an export, if it holds more of a run than may be
    published, if the encoder fails `verify`, or if the Hub refuses or cannot be reached.
    """
    hub, errors = (import_extra(f"huggingface_hub{part}", "hub") for part in ("", ".errors"))
    folder = Path(folder).expanduser()
    _require_export(folder)
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
        raise UserError(f"{repository}: is not a valid name of a repository: {error}") from error
    except errors.HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{repository}: the Hub refused: {reason}; log in with `hf auth login`, and check the "
            "name of the organisation"
        ) from error
    except Exception as error:  # its type depends on the HTTP library of the client
        if not _is_network_error(error):
            raise
        raise UserError(f"{repository}: the Hub cannot be reached ({error}); try again") from error
    return f"hf:{repository}@{commit.oid}"


def _require_export(folder: Path) -> None:
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: has no {missing[0]}; give a folder that `mcr export` wrote")
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    facts = config.get("mcr", {}).get("training", {})
    if public_facts(facts) != facts:
        raise UserError(
            f"{folder}: holds the command line or folders of its run, which an earlier version of "
            f"mcr wrote into exports; export it again before it is published: mcr export {folder} "
            "NEW"
        )


def _is_network_error(error: BaseException | None) -> bool:
    """Whether it was caused by an error of the operating system: to connect, send or receive."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error is not None
