"""Types of arrays that tasks take and give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Any stands for the size of the numbers: engines of every format give logits, and data sets have labels of any width.
Array = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
# A tensor of a server's answer, of whatever numbers or text; None if the server left it out.
AnswerTensor = NDArray[Any] | None
