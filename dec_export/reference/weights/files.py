"""The reading of files of weights, which executes nothing that they hold."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.reference.weights.pickles import check_pickles
from dec_export.reference.weights.unread import UNREAD_GLOBALS, Unread

Weights = dict[str, Tensor]

# The entries under which training checkpoints hold their weights; averaged weights come first, as in timm.
_ENTRIES = ("state_dict_ema", "state_dict", "model")
# The prefixes that wrappers of training code put before every key.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# Buffers that older releases of timm saved, although they are computed from the architecture.
_COMPUTED_BUFFERS = ("relative_position_index", "attn_mask")


def read_content(path: Path) -> object:
    """Return the whole content of a safetensors file or a PyTorch checkpoint, unchanged.

    Raises CheckpointError when the file is missing or truncated, or holds objects that could execute code.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"There is no checkpoint file '{path}'.")
        return _read_pickle(path) if _is_pickle(path) else load_file(path)
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint '{path}': {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"'{path}' is neither a whole safetensors file nor a PyTorch checkpoint ({error})."
        ) from error


def _is_pickle(path: Path) -> bool:
    """Return whether PyTorch wrote a file, by its first bytes and not by its name: a zip archive, or a pickle.

    A safetensors file begins with the length of its header, whose bytes may be those of a pickle, and with a brace.
    """
    with path.open("rb") as file:
        first = file.read(9)
    header = int.from_bytes(first[:8], "little")
    is_safetensors = first[8:] == b"{" and header <= path.stat().st_size
    return first.startswith((b"PK\x03\x04", b"\x80")) and not is_safetensors


def read_safetensors(path: Path) -> Weights:
    """Return the tensors of a safetensors file; no pickle is read, whatever the file's first bytes are.

    Raises CheckpointError when the file is missing, truncated, or of another format.
    """
    try:
        found: Weights = load_file(path)
        return found
    except OSError as error:
        raise CheckpointError(f"Cannot read the weights '{path}': {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CheckpointError(f"'{path}' is not a whole safetensors file ({error}).") from error


def _read_pickle(path: Path) -> object:
    try:
        check_pickles(path)
        # Training programs store their command line beside the weights; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace, *UNREAD_GLOBALS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = _plain(torch.load(path, map_location="cpu", weights_only=True))
        places = [content, *(map(content.get, _ENTRIES) if isinstance(content, Mapping) else ())]
        if any(isinstance(place, Unread) for place in places):
            raise UnpicklingError("an object stands where its weights are expected")
        return content
    except UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' is a pickle that holds more than tensors, numbers and text; it was refused, nothing in it "
            "was executed: save model.state_dict() alone, or a safetensors file."
        ) from error
    except (CheckpointError, OSError):
        raise
    # A damaged archive may make the unpickler raise any exception. The message of PyTorch is not repeated, because some
    # of its messages advise to load the file unsafely.
    except Exception as error:
        raise CheckpointError(
            f"'{path}' is not a whole PyTorch checkpoint of tensors ({type(error).__name__} while reading it)."
        ) from error


def _plain(value: object, seen: dict[int, object] | None = None) -> object:
    """Return a copy with plain dictionaries, as a pickled subclass may have attributes that hide its methods.

    `seen` has the copies of the dictionaries that were met, as one that occurs twice at each of many levels would
    otherwise be copied an exponential number of times.
    """
    if not isinstance(value, dict):
        return value
    seen = {} if seen is None else seen
    if id(value) not in seen:
        copied: dict[object, object] = {}
        seen[id(value)] = copied
        copied.update({key: _plain(item, seen) for key, item in dict.items(value)})
    return seen[id(value)]


def find_state_dict(content: object, path: Path) -> Mapping[str, object]:
    """Return the state dict itself, or the one inside a training checkpoint; averaged weights are preferred.

    Raises CheckpointError, which names the file by `path`, when there is none.
    """
    if isinstance(content, Mapping):
        for entry in _ENTRIES:
            if isinstance(content.get(entry), Mapping):
                content = content[entry]
                break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"'{path}' holds no state dict: expected a mapping from names to tensors, or one under "
            f"{', '.join(_ENTRIES)}; found {found or 'an empty mapping'}."
        )
    return content


def strip_prefixes(state: Mapping[str, object]) -> Weights:
    """Return the tensors of a state dict, without the prefix that a wrapper of training code put before every key."""
    weights = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in _WRAPPER_PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if not key.endswith(_COMPUTED_BUFFERS)}
