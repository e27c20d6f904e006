"""A folder → the Hugging Face hub, by its own client. Not here: what is in the folder."""

from __future__ import annotations

from pathlib import Path

from babyllama.amounts import amount, size
from babyllama.errors import InputError


def amount_of(folder: Path) -> str:
    """How many files, and their size."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{amount(len(files), 'file')}, {size(sum(path.stat().st_size for path in files))}"


def listing(folder: Path) -> str:
    """What would be uploaded, a file a line."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "\n".join(f"  {path.relative_to(folder).as_posix()}  {size(path.stat().st_size)}" for path in files)


def check_repository(name: str) -> None:
    """Raise InputError unless the hub would take `name`, such as me/my-model."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"push: {' '.join(str(error).split())}") from None


def push(folder: Path, name: str, private: bool) -> str:
    """Upload all files in one commit, making the repository where there is none; its address.

    Raises:
        InputError: no token, no right to write there, no network.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        address = str(HfApi().create_repo(name, private=private, exist_ok=True))
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}")
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx.HTTPError, OSError) as error:
        raise InputError(f"push: {name}: the hub refused or did not answer ({' '.join(str(error).split())[:200]}); "
                         "log in with: hf auth login") from None  # fmt: skip
    return address
