"""Publish a model directory on the Hugging Face hub."""

from pathlib import Path

from secateur.errors import UserError


def check_publishing(name: str) -> None:
    """Whether the hub will know who publishes, and can be given this name: before anything expensive starts.

    Raises `UserError` for a name that is none, and without a token that the hub accepts.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"--push-to-hub {name!r}: {str(error).rstrip('.')}. Give OWNER/NAME, or a NAME of your own, such as me/llama-smaller."
        ) from None
    if get_token() is None:
        raise UserError(
            f"--push-to-hub {name} was given, and there is no token of the hub's. Run `hf auth login` or set HF_TOKEN; or leave the "
            "option out and run `hf upload` later."
        )
    try:
        HfApi().whoami()
    except Exception as error:  # of the network and of the hub
        raise UserError(
            f"--push-to-hub {name} was given, and the hub does not say who you are: {_first_line(error)}. Mend that, or leave the "
            "option out and run `hf upload` later."
        ) from error


def publish(directory: Path, name: str, *, private: bool) -> str:
    """Make the repository if there is none, and upload everything in the directory; its address comes back.

    Raises `UserError` where the hub refuses; the directory stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise UserError("it exists already and everybody can read it, and --private was given")
        api.upload_folder(repo_id=made.repo_id, folder_path=directory, commit_message="Pruned with Secateur")
    except Exception as error:
        raise UserError(
            f"publishing {directory} as {name} failed: {_first_line(error)}. The directory is whole: once that is mended, upload it "
            f"with `hf upload {name} {directory}`."
        ) from error
    return str(made)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{text[0].rstrip('.:') if text else 'it gave no reason'}"
