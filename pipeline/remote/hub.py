"""Repositories on Hugging Face's hub: the commit that a listing is of, and where the bytes of a file lie."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit


def at_commit(files: Any, path: str) -> str:
    """A path in a repository (datasets/user/name/folder) at the commit that its branch has now, so that files do not
    change while they are used. files: an `HfFileSystem`. Other paths, such as those of a bucket, stay as they are."""
    from huggingface_hub import HfApi, constants

    place = files.resolve_path(path)
    if not hasattr(place, "repo_id"):
        return path
    commit = HfApi(files.endpoint).repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision).sha
    kind = constants.REPO_TYPES_URL_PREFIXES.get(place.repo_type, "")
    return f"{kind}{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/")


def stored_at(files: Any, path: str) -> tuple[str, dict[str, str]] | None:
    """The address of a file's bytes, which may hold a signature, and the headers that it needs; None outside of
    repositories. The hub redirects to large files: so reading asks it once for a file, not for each range."""
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

    place = files.resolve_path(path)
    if not hasattr(place, "repo_id"):
        return None
    url = hf_hub_url(
        place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision, endpoint=files.endpoint
    )
    token = get_token()
    found = get_hf_file_metadata(url, token=token).location
    is_hub = urlsplit(found).netloc == urlsplit(files.endpoint).netloc
    return found, {"Authorization": f"Bearer {token}"} if token and is_hub else {}
