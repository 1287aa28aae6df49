"""The Hugging Face Hub: `hf:org/name[/file][@revision]` -> a local file or an export's folder.

Downloads go to the Hub's own cache. HF_HUB_OFFLINE and HF_ENDPOINT are respected; the library
itself reads HF_TOKEN. Uploading is in `release.hub_upload`. Needs `pip install 'mcr[hub]'`.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from mcr.errors import UserError, import_extra
from mcr.models.layouts import CONFIG_NAME, WEIGHTS_NAME

SCHEME = "hf:"


@dataclass(frozen=True)
class Address:
    """A file on the Hub. file "" = the export in its root; revision None = the newest."""

    repository: str
    file: str
    revision: str | None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{SCHEME}{self.repository}{file}{f'@{self.revision}' if self.revision else ''}"


def parse(text: str) -> Address:
    """Parse hf:org/name, hf:org/name/folder/file.pth@v1.0, ...; UserError for anything else."""
    place, _, revision = text.removeprefix(SCHEME).partition("@")
    organisation, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    if not organisation or not name or ("@" in text and not revision):
        raise UserError(f"{text}: an address on the Hub is hf:org/name[/file][@revision]")
    return Address(f"{organisation}/{name}", file, revision or None)


def download(text: str) -> Path:
    """Download what `text` names; return the path of the file, or of the export's folder.

    Raises UserError if it does not exist, cannot be reached, or may not be downloaded.
    """
    address = parse(text)
    if address.file:
        return _download(address, address.file)
    return [_download(address, name) for name in (CONFIG_NAME, WEIGHTS_NAME)][-1].parent


def cached(text: str) -> Path | None:
    """Return the file of `hf:...` if it is in the Hub's cache; nothing is downloaded."""
    if not text.startswith(SCHEME) or importlib.util.find_spec("huggingface_hub") is None:
        return None
    hub, address = import_extra("huggingface_hub", "hub"), parse(text)
    found = hub.try_to_load_from_cache(address.repository, address.file, revision=address.revision)
    return Path(found) if isinstance(found, str) else None


def _download(address: Address, name: str) -> Path:
    hub = import_extra("huggingface_hub", "hub")
    errors = import_extra("huggingface_hub.errors", "hub")
    try:
        path = hub.hf_hub_download(
            address.repository,
            name,
            revision=address.revision,
            endpoint=os.environ.get("HF_ENDPOINT"),
            local_files_only=_is_offline(),
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{address}: access is granted on request: accept its terms on its page on the Hub and "
            "log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{address}: there is no such repository, or it is private: check the name, or log in "
            "with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{address}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if _is_offline() else "the Hub cannot be reached"
        raise UserError(f"{address}: {name} is not in the cache, and {reason}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(_missing_file(address, name)) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{address}: the Hub refused: {reason}") from error
    return Path(path)


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _missing_file(address: Address, name: str) -> str:
    hub = import_extra("huggingface_hub", "hub")
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    files = api.list_repo_files(address.repository, revision=address.revision)
    weights = [file for file in files if file.endswith((".pth", ".pt", ".bin", ".safetensors"))]
    example = weights[0] if weights else "FILE"
    return (
        f"{address}: there is no {name} in it; it holds {', '.join(weights) or 'no weights'}: name "
        f"the file, as in {SCHEME}{address.repository}/{example}"
    )
