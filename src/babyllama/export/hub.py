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
    from huggingface_hub import HfApi, constants

    try:
        hub = HfApi()
        address = str(hub.create_repo(name, private=private, exist_ok=True))
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}")
    except Exception as error:  # the package and its HTTP client raise many types
        raise InputError(f"push: {name}: {constants.ENDPOINT} refused or did not answer "
                         f"({' '.join(str(error).split())[:200]}); check the network, log in with: hf auth login, "
                         f"or upload later: hf upload {name} {folder}") from None  # fmt: skip
    return address
