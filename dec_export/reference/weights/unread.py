"""Objects of training programs in a checkpoint, which are skipped so that they cannot execute anything.

The checkpoints of SER (arXiv 2603.06693) hold lists of losses as NumPy arrays, a command line with paths and an
interpolation, and projection heads as whole modules. Those of DEC's ImageNet program hold numbers of a YAML reader. The
names of all these in a pickle are resolved to a class that ignores its arguments: no array is allocated, whatever size
the file states, and no module is created.
"""

from __future__ import annotations


class Unread:
    """A placeholder for an object of a checkpoint that is not read."""

    def __new__(cls, *_: object) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NAMES = (
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.bytes",  # the data of an array without elements
    # The functions of NumPy 1 and NumPy 2 that rebuild arrays.
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    # Python 3.13 pickles paths under the name of a module of its own.
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")),
    "torchvision.transforms.functional.InterpolationMode",
    # Numbers that the published ImageNet program takes from its YAML file into its command line, as args.lr.
    *(f"ruamel.yaml.{name}" for name in ("scalarfloat.ScalarFloat", "scalarint.ScalarInt", "scalarbool.ScalarBoolean")),
    # The modules of a projection head.
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "torch.nn.modules.activation.ReLU",
)

# Pairs of a class and the name in a pickle that it replaces, as `torch.serialization.safe_globals` takes them.
UNREAD_GLOBALS = [(Unread, name) for name in _NAMES]
