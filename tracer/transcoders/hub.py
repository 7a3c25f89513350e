"""Transcoders on the Hugging Face hub: what to fetch, and what went wrong in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tracer.errors import FormatError, TracingError

__all__ = ["Found", "Reference", "fetch_file", "fetch_folder", "parse"]

_PART: Final = r"[A-Za-z0-9][\w.\-]*"
_NAME: Final = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:/(?P<folder>[^@]+))?(?:@(?P<rev>\S+))?")
_WEIGHTS: Final = ("*.safetensors", "*.npz", "*.json", "*.yaml")


@dataclass(frozen=True)
class Reference:
    """``owner/name[/folder][/pattern][@revision]``."""

    repo: str
    folder: str
    revision: str | None
    select: str = ""

    @property
    def name(self) -> str:
        """Without the revision."""
        return "/".join(part for part in (self.repo, self.folder, self.select) if part)


class Found(NamedTuple):
    """A downloaded folder and the commit it is of."""

    path: Path
    commit: str


def parse(text: str, revision: str | None = None) -> Reference:
    """Read the name of a repository.

    Raises
    ------
    TracingError
        If it is neither a name nor an existing folder, or names two revisions.

    Examples
    --------
    >>> parse("owner/name/sub/folder@v1")
    Reference(repo='owner/name', folder='sub/folder', revision='v1', select='')
    """
    match = _NAME.fullmatch(text.removeprefix("hf://"))
    if match is None or ".." in text:
        raise TracingError(
            f'transcoder "{text}": no such folder, and not the name of a hub repository',
            "Give a folder, or owner/name[/folder][@revision]",
        )
    named = match["rev"]
    if named and revision and named != revision:
        raise TracingError(
            f'transcoder "{text}": revision {revision} is asked for too', "Give one revision"
        )
    parts = [part for part in (match["folder"] or "").split("/") if part]
    plain = next((place for place, part in enumerate(parts) if "*" in part), len(parts))
    return Reference(
        match["repo"], "/".join(parts[:plain]), named or revision, "/".join(parts[plain:])
    )


def fetch_folder(reference: Reference) -> Found:
    """Fetch a repository's transcoder into the hub's cache, unless it is there.

    A ``config.yaml`` that lists its files is all that is fetched at first: what it lists is fetched
    one by one (:func:`fetch_file`), because the repository may hold many other things.

    Raises
    ------
    TracingError
        If the repository or revision does not exist, is not public, or the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    inside = f"{reference.folder}/" if reference.folder else ""
    with _hub_errors(reference.name):
        config = _config(reference, f"{inside}config.yaml")
        listed = config is not None and re.search(
            r"^transcoders:", config.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        if config is not None and listed and "hf://" in config.read_text(errors="replace"):
            return Found(config.parent, _commit(config))
        if config is None and not reference.select:
            _refuse_many(reference, inside)
        root = Path(
            snapshot_download(
                reference.repo,
                revision=reference.revision,
                allow_patterns=[
                    f"{inside}{reference.select}{'/' if reference.select else ''}{pattern}"
                    for pattern in _WEIGHTS
                ],
            )
        )
    path = root / reference.folder
    if not path.is_dir():
        raise TracingError(
            f"{reference.name}: the repository has no such folder of weights",
            "Look at its list of files on the hub",
        )
    return Found(path, root.name)


def fetch_file(address: str) -> Path:
    """Fetch one file, ``hf://owner/name/path/in/it[?revision=…]``.

    Raises
    ------
    FormatError
        If the address is of another form.
    TracingError
        If it cannot be fetched.

    """
    from huggingface_hub import hf_hub_download

    parts = urlsplit(address)
    repo_and_path = f"{parts.netloc}{parts.path}".split("/", 2)
    if parts.scheme != "hf" or len(repo_and_path) != 3:
        raise FormatError(
            f'config.yaml: "{address}" is not a file on the hub',
            "Write hf://owner/name/file, or a path relative to the folder",
        )
    owner, name, path = repo_and_path
    revision = parse_qs(parts.query).get("revision", [None])[0]
    with _hub_errors(address):
        return Path(hf_hub_download(f"{owner}/{name}", path, revision=revision))


def _config(reference: Reference, filename: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(reference.repo, filename, revision=reference.revision))
    except LocalEntryNotFoundError:
        return None  # not in the cache and no network: the rest of it may be in the cache
    except EntryNotFoundError:
        return None


def _refuse_many(reference: Reference, inside: str) -> None:
    """Refuse a repository of several sets before all of them, perhaps terabytes, are fetched."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return  # what is in the cache is there already
    by_layer: dict[str, list[str]] = {}
    for path in HfApi().list_repo_files(reference.repo, revision=reference.revision):
        match = re.search(r"layer_(\d+).*params\.(?:npz|safetensors)$", path)
        if match and path.startswith(inside):
            by_layer.setdefault(match[1], []).append(path)
    paths = max(by_layer.values(), key=len, default=[])
    if len(paths) > 1:
        shown = ", ".join(paths[:4]) + (", …" if len(paths) > 4 else "")
        raise TracingError(
            f"{reference.name}: several transcoders for a layer: {shown}",
            "Choose with a pattern, for instance "
            "owner/name/transcoder_all/layer_*_width_16k_l0_small",
        )


def _commit(path: Path) -> str:
    """Commit of a file in the cache, ``…/snapshots/{commit}/…``."""
    parts = path.parts
    return parts[len(parts) - parts[::-1].index("snapshots")]


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Say what the hub's errors mean for the user."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise TracingError(
            f"{what}: the repository asks for consent before it can be read",
            "Agree to its terms on its page, then sign in with: hf auth login",
        ) from None
    except errors.RevisionNotFoundError:
        raise TracingError(
            f"{what}: no such revision", "Look at its branches and commits on the hub"
        ) from None
    except errors.RepositoryNotFoundError:
        raise TracingError(
            f"{what}: no such folder here, and no such public repository on the hub",
            "Check the name; for a private one sign in with: hf auth login",
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(what, error) from None
    except (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError) as error:
        problem = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise TracingError(
            f"{what}: the hub refuses it ({problem})", "Check the name and the revision"
        ) from None
    # Which library speaks HTTP differs between versions; all their errors come under these two.
    except (getattr(errors, "HTTPError", OSError), OSError) as error:
        raise _unreachable(what, error) from None


def _unreachable(what: str, error: Exception) -> TracingError:
    return TracingError(
        f"{what}: no such folder here, not in the hub's local cache, and the hub cannot be reached "
        f"({type(error).__name__})",
        "Check the name, connect to the network once, or give a local folder",
    )
