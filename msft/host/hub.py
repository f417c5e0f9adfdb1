"""Push a folder to a repository of the Hugging Face Hub; the token is that of huggingface_hub."""

import re
from pathlib import Path
from typing import Literal

from msft.errors import ExitCode, MsftError

CARD = "README.md"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")

_NOT_NAMED = {"the", "license", "licence", "version"}
# SPDX ids of licences, as the Hub writes them.
SPDX = frozenset(
    [
        "mit",
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "isc",
        "unlicense",
        "cc0-1.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nc-nd-4.0",
        "odc-by",
        "gpl-3.0",
        "agpl-3.0",
        "lgpl-3.0",
        "mpl-2.0",
    ]
)


def spdx_id(licence: str | None) -> str | None:
    """Return the id that the Hub has for a licence, if all terms are that one licence: ``apache-2.0`` for Apache License 2.0."""
    terms = {
        "-".join(
            word for word in re.findall(r"(?:\bv(?=\d))?([\w.]+)", term.lower()) if word not in _NOT_NAMED
        )
        for term in (licence or "").split(";")
    }
    return next(iter(terms)) if len(terms) == 1 and terms <= SPDX else None


def check_repo(repo: str) -> None:
    """Refuse a name that is no repository's.

    Raises:
        MsftError: the name is not OWNER/NAME (exit code 2).
    """
    if not _REPO.fullmatch(repo):
        raise MsftError(
            f"repository {repo!r}: expected OWNER/NAME", hint="--push me/my-ranker", exit_code=ExitCode.USAGE
        )


def check_card(folder: Path) -> None:
    """Refuse a folder whose card says no licence: others would not know what they may do with it.

    Raises:
        MsftError: the card or its licence is missing (exit code 4).
    """
    from huggingface_hub import metadata_load

    found = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    if not found or not found.get("license"):
        raise MsftError(
            f"{CARD} has no licence, so nothing is pushed",
            hint="give the terms with --licence, such as --licence apache-2.0",
            exit_code=ExitCode.DATA_MISSING,
        )


def push(folder: Path, repo: str, kind: Literal["model", "dataset"], *, public: bool = False) -> str:
    """Upload a folder as one commit; the repository is made if the Hub has none of that name. Returns its address.

    Args:
        public: make a new repository public. A repository that exists stays as it is.

    Raises:
        MsftError: the name, the card or its licence is wrong, the Hub cannot be reached, or it refuses (exit code 4).
    """
    check_repo(repo)
    check_card(folder)
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(library_name="msft")
    try:
        made = api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=made.repo_id, repo_type=kind, commit_message="msft export"
        )
    except OfflineModeIsEnabled as error:
        raise MsftError(
            f"{repo} is not pushed: HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE",
            exit_code=ExitCode.DATA_MISSING,
        ) from error
    except LocalTokenNotFoundError as error:
        raise MsftError(
            f"{repo} is not pushed: no token", hint="hf auth login", exit_code=ExitCode.DATA_MISSING
        ) from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        reason = f"the Hub answered {code}" if code else str(error).splitlines()[0]
        hint = "hf auth login, with a token that may write there" if code in (401, 403) else "try again"
        raise MsftError(f"{repo} is not pushed: {reason}", hint, ExitCode.DATA_MISSING) from error
    except ValueError as error:  # the Hub's own check of the card
        raise MsftError(f"{repo} is not pushed: {error}", exit_code=ExitCode.DATA_MISSING) from error
    except (httpx.TransportError, OSError) as error:
        raise MsftError(
            f"{repo} is not pushed: the Hub cannot be reached ({error})",
            hint="check the network and HF_ENDPOINT",
            exit_code=ExitCode.DATA_MISSING,
        ) from error
    return str(made)
