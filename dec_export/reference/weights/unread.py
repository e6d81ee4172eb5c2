"""What training programs leave beside the weights: it is passed over, so that it can do nothing.

The checkpoints of SER (arXiv 2603.06693) hold lists of losses as NumPy arrays, a command line with paths and an
interpolation, and projection heads as whole modules. Their names in a pickle are answered with a class that keeps
nothing of its arguments: no array is allocated, whatever its size is said to be, and no module is made.
"""

from __future__ import annotations

from typing import Any


class Unread:
    """Stands for an object of a checkpoint that is not read."""

    def __new__(cls, *_: object) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NAMES = (
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.bytes",  # of an array without elements
    # NumPy 1 and NumPy 2.
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    # Python 3.13 pickles paths under the name of a module of its own.
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")),
    "torchvision.transforms.functional.InterpolationMode",
    # The parts of a projection head.
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "torch.nn.modules.activation.ReLU",
)

# What `torch.serialization.safe_globals` takes: each name of a pickle with what stands for it.
UNREAD_GLOBALS: list[Any] = [(Unread, name) for name in _NAMES]
