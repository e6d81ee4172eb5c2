"""The types of arrays that tasks take and return."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Any stands for the size of the numbers: engines of every format return logits, and data sets have labels of any width.
Array = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
# A tensor of a server's answer, which may hold any numbers or text, hence Any; None if the server left it out.
AnswerTensor = NDArray[Any] | None
