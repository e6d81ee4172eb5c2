"""The reading of files of weights, which executes nothing that they hold."""

from __future__ import annotations

import argparse
import mmap
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dec_export.errors import CheckpointError
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
        # The first bytes of a file, not its name, show its format: PyTorch writes a zip archive or a pickle.
        with path.open("rb") as file:
            is_pickle = file.read(4).startswith((b"PK\x03\x04", b"\x80"))
        return _read_pickle(path) if is_pickle else load_file(path)
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint '{path}': {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"'{path}' is neither a whole safetensors file nor a PyTorch checkpoint ({error})."
        ) from error


def _read_pickle(path: Path) -> object:
    try:
        _refuse_zip_bomb(path)
        _refuse_byte_arrays(path)
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


def _refuse_zip_bomb(path: Path) -> None:
    """Refuse an archive that is larger when unpacked, as PyTorch stores its archives uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"'{path}' unpacks to {unpacked} bytes, more than its own size: PyTorch writes no such file."
        )


def _refuse_byte_arrays(path: Path) -> None:
    """Refuse a pickle with a byte array, which no checkpoint has.

    PyTorch's unpickler would allocate an array of any size that a small file names.
    """
    name = b"bytearray\n"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.namelist() if entry.endswith(".pkl")]
            found = any(name in archive.read(entry) for entry in pickles)
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = content.find(name) >= 0
    if found:
        raise UnpicklingError("it makes an array of bytes")


def _plain(value: object) -> object:
    """Return a copy with plain dictionaries, as a pickled subclass may have attributes that hide its methods."""
    return {key: _plain(item) for key, item in dict.items(value)} if isinstance(value, dict) else value


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
