"""Loading a transformers causal language model from a folder or the hub.

A hub id is downloaded first (its files only: configuration, tokenizer, safetensors), and loaded
from the folder that gives. Pickled weights are never opened. What transformers would let pass with
a warning is an error here: weights that are missing and would be made up, and weights that are not
finite.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import torch
import transformers
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError

from tracer.errors import FormatError, SettingError, TracingError
from tracer.graph import JSON
from tracer.models.families import family_of
from tracer.models.model import Model
from tracer.models.proof import TOLERANCES
from tracer.tensors import fingerprint_of, open_tensors

__all__ = ["load_model", "outline_model"]

_FILES: Final = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
]
# Subfolders hold other formats; "consolidated" is the same weights in the maker's own layout.
_NOT_FILES: Final = ["*/*", "consolidated*"]
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Some errors of the hub's client are rooted in Exception alone, and not every version has each.
_HUB_ERRORS: Final[tuple[type[Exception], ...]] = (
    OSError,
    ValueError,
    *(
        getattr(hub_errors, name)
        for name in ("HTTPError", "RevisionResolutionError", "XetDownloadError")
        if hasattr(hub_errors, name)
    ),
)
_CONFIGURATION_ERRORS: Final[tuple[type[Exception], ...]] = (
    KeyError,
    OSError,
    TypeError,
    ValueError,
    *(getattr(hub_errors, name) for name in ("StrictDataclassError",) if hasattr(hub_errors, name)),
)
# What building the modules of a configuration raises where its numbers do not go together.
_BUILDING_ERRORS: Final[tuple[type[Exception], ...]] = (
    *_CONFIGURATION_ERRORS,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)
_LOADING_ERRORS: Final[tuple[type[Exception], ...]] = (*_BUILDING_ERRORS, SafetensorError)
# Settings that change no result: names, versions, the stored type (what is computed in is given
# when a model is loaded), and what generation or classification alone look at.
_COSMETIC: Final = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "task_specific_params",
        "use_cache",
    }
)
_LONGEST_REASON: Final = 200  # characters of a foreign message
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    check: bool = True,
) -> Model:
    """Load a model of a known family and prove that freezing it holds.

    Parameters
    ----------
    name_or_path
        Folder of a transformers checkpoint, which wins if it exists, or a hub id; a hub id may
        carry its revision, ``owner/name@revision``.
    revision
        Branch, tag or commit on the hub; a local folder has none.
    dtype
        Of the weights: float32, float64, bfloat16 or float16.
    device
        Where the weights go.
    check
        Freeze a short made-up prompt and prove every piece of it.

    Returns
    -------
    Model
        In evaluation mode, with eager attention and without gradients.

    Raises
    ------
    TracingError
        If the model is not found, cannot be reached, is of no known family, lacks weights, is
        quantised, or its freeze does not hold (naming family, layer and piece).
    FormatError
        If a file cannot be read or a weight is not finite (naming the tensor).
    SettingError
        If `dtype` or `device` cannot be used, or `revision` is given with a local folder.
    """
    _check_settings(dtype, device)
    folder, source, revision = _find(name_or_path, revision)
    config = _configuration(folder, source)
    family_of(config, source)  # before gigabytes of weights are read
    module = _module(folder, source, config, dtype)
    _check_finite(module, folder)
    info = _origin(folder, source, revision)
    model = Model(_moved(module, source, device), _tokenizer(folder), model_id=source, info=info)
    if check:
        model.prove(model.made_up_prompt())
    return model


def outline_model(
    name_or_path: str | Path, *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> Model:
    """Make a model without its weights: enough to tokenize prompts and to tell graphs' ids.

    Parameters and errors are those of :func:`load_model`; its files are looked for and the weights'
    fingerprint is taken, but nothing can be computed with it.
    """
    folder, source, revision = _find(name_or_path, revision)
    config = _configuration(folder, source)
    make: Any = transformers.AutoModelForCausalLM.from_config
    try:
        with _quiet(), torch.device("meta"):
            module = make(config, dtype=dtype, attn_implementation="eager")
    except _BUILDING_ERRORS as error:
        raise FormatError(
            f"{folder / 'config.json'}: no model can be made of it ({_reason(error)})",
            "Download the model again",
        ) from None
    info = _origin(folder, source, revision)
    return Model(module, _tokenizer(folder), model_id=source, info=info)


def _origin(folder: Path, source: str, revision: str | None) -> dict[str, Any]:
    """Where a model came from, and a fingerprint that tells it from others.

    Two steps of one training run have one name and other weights: the name alone is no identity.
    Nor are the weights: the same ones with another norm's epsilon or rotary base are another model,
    so ``config.json`` is digested too, as it is written but for `_COSMETIC`. (With the library's
    defaults filled in, the fingerprint would change with its version.)
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    files = [open_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    return {
        "source": source,
        "revision": revision,
        "commit": _commit(folder),
        "fingerprint": fingerprint_of(files, _telling(config)),
    }


def _telling(config: JSON) -> JSON:
    """Leave out what changes no result, in parts of a configuration too."""
    if isinstance(config, dict):
        return {name: _telling(value) for name, value in config.items() if name not in _COSMETIC}
    return config


def _check_settings(dtype: torch.dtype, device: str | torch.device) -> None:
    if dtype not in TOLERANCES:
        known = ", ".join(str(kind) for kind in TOLERANCES)
        raise SettingError(f"dtype is {dtype!r}", f"Give one of {known}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(
            f'device "{device}" cannot be used ({_reason(error)})',
            'Give "cpu" or a device of this machine',
        ) from None


def _find(name_or_path: str | Path, revision: str | None) -> tuple[Path, str, str | None]:
    """Folder of the checkpoint, the id that results carry, and the revision."""
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    if name and path.is_dir():
        if revision:
            raise SettingError(
                f"revision {revision} is given, but {name} is a folder on disk",
                "Leave the revision out, or give a name on the hub that no local folder has",
            )
        _check_folder(path)
        return path, path.resolve().name, None
    if path.is_file():
        raise TracingError(f"{name} is a file", "Give the folder that holds config.json")
    hub_id, _, at = name.partition("@")
    revision = revision or at or None
    if isinstance(name_or_path, Path) or not _HUB_ID.fullmatch(hub_id):
        raise TracingError(
            f'there is no folder "{name}", and it is no hub id',
            "Give the folder of a transformers checkpoint, or owner/name of one on the hub",
        )
    folder = Path(_download(hub_id, revision))
    _check_folder(folder)
    return folder, hub_id, revision


def _download(hub_id: str, revision: str | None) -> str:
    try:
        return huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=_FILES, ignore_patterns=_NOT_FILES
        )
    except hub_errors.GatedRepoError:
        raise TracingError(
            f"{hub_id} is gated on the hub",
            "Accept its terms there, and set HF_TOKEN to a token that may read it",
        ) from None
    except _HUB_ERRORS as error:
        raise TracingError(
            f"{hub_id}{'@' + revision if revision else ''}: no folder of that name, and the hub "
            f"does not give it ({_reason(error)})",
            "Check the name, the connection (HF_HUB_OFFLINE must not be set) and HF_TOKEN, or give "
            "the folder of a downloaded model",
        ) from None


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise TracingError(
            f"{folder} holds no config.json",
            "Give the folder of a transformers checkpoint (config.json and *.safetensors)",
        )


def _configuration(folder: Path, source: str) -> Any:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise FormatError(f"{path} cannot be read ({error})", "Download the model again") from None
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        raise TracingError(
            f'{path} names no "model_type"', "Give the folder of a transformers checkpoint"
        )
    if raw.get("quantization_config"):
        raise TracingError(
            f"{source} is quantised",
            "Load the unquantised model; dtype=torch.bfloat16 saves memory",
        )
    family_of(_Kind(kind, raw.get("architectures")), source)
    try:
        with _quiet():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except _CONFIGURATION_ERRORS as error:
        raise FormatError(
            f"{path} cannot be read ({_reason(error)})", "Download the model again"
        ) from None


class _Kind:
    """As much of a configuration as chooses the family, before transformers reads the rest."""

    def __init__(self, model_type: str, architectures: object) -> None:
        self.model_type = model_type
        self.architectures = architectures if isinstance(architectures, list) else None


def _module(folder: Path, source: str, config: Any, dtype: torch.dtype) -> Any:
    if not any(folder.glob("*.safetensors")):
        raise TracingError(
            f"{folder} holds no *.safetensors",
            "Convert the weights to safetensors; pickled ones are never opened",
        )
    try:
        with _quiet():
            # Typed as a model alone; output_loading_info makes it a pair.
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except _LOADING_ERRORS as error:
        raise FormatError(
            f"the weights in {folder} cannot be read ({_reason(error)})", "Download the model again"
        ) from None
    module, loading = loaded
    made_up = sorted({*loading["missing_keys"], *(str(key) for key in loading["mismatched_keys"])})
    if made_up:
        others = f" and {len(made_up) - 1} more" if len(made_up) > 1 else ""
        raise TracingError(
            f"{source}: its files do not hold tensor {made_up[0]}{others} in the shape that "
            f"{type(module).__name__} needs",
            "Give the folder of a whole causal language model",
        )
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar and the notes that transformers prints while it loads from a folder."""
    notes: Any = transformers.logging
    before, bars = notes.get_verbosity(), notes.is_progress_bar_enabled()
    notes.set_verbosity(logging.ERROR)
    notes.disable_progress_bar()
    try:
        yield
    finally:
        notes.set_verbosity(before)
        if bars:
            notes.enable_progress_bar()


def _check_finite(module: Any, folder: Path) -> None:
    for name, weight in module.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise FormatError(
                f"{folder}: tensor {name} holds values that are not finite",
                "Download the model again, or load it in a wider dtype",
            )


def _moved(module: Any, source: str, device: str | torch.device) -> Any:
    try:
        return module.to(device)
    except torch.OutOfMemoryError:
        size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
        raise TracingError(
            f'{source} ({size / 2**30:.1f} GiB) does not fit on device "{device}"',
            "Load it with dtype=torch.bfloat16, or on another device",
        ) from None


def _tokenizer(folder: Path) -> Any | None:
    # Without files transformers makes up a tokenizer of one token, which would cut no text.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        with _quiet():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # The tokenizers library raises plain Exception for a file that it cannot parse.
        known = (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError)
        if type(error) is not Exception and not isinstance(error, known):
            raise
        raise FormatError(
            f"the tokenizer in {folder} cannot be read ({_reason(error)})",
            "Download the model again",
        ) from None


def _reason(error: Exception) -> str:
    """First two lines of a foreign message, as one of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])
    if len(text) > _LONGEST_REASON:
        return text[: _LONGEST_REASON - 1].rstrip() + "…"
    return text.rstrip(".") or type(error).__name__


def _commit(folder: Path) -> str | None:
    """Commit of a downloaded snapshot: the hub's cache names its folder so."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
