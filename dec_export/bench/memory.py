"""The peak memory of one subject in a new process, which holds as much as a server would."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dec_export.bench.report import PeakMemory
from dec_export.bench.subjects import standalone
from dec_export.bundle.store import Bundle
from dec_export.children import python_command
from dec_export.errors import EngineError

_SUBJECT = """
from pathlib import Path
import numpy
from dec_export.bench.subjects import scratch, subject
from dec_export.bundle.store import Bundle
folder = scratch()
run = subject(Bundle.load(path), name, threads, Path(folder.name))
"""
_MEASURE = """
images = numpy.random.default_rng(0).standard_normal((batch, 3, size, size)).astype("float32")
def held(key):
    status = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))
before = held("VmRSS:")
run(images)
run(images)
print(json.dumps({"before": before, "peak": held("VmHWM:")}), file=out)
"""


def peak_memory(bundle: Bundle, name: str, batch: int, threads: int, folder: Path) -> PeakMemory | None:
    """Return the memory of a process that runs the subject `name` of a bundle twice, or None outside Linux.

    An engine that can run an ONNX file without dec-export is measured without dec-export. folder: the folder to which
    `subject` wrote its files. Raises EngineError when the process fails.
    """
    if not Path("/proc/self/status").exists():
        return None
    body, path = standalone(bundle, name, folder) or (_SUBJECT, bundle.path)
    size = bundle.recipe.image_size
    values = {"name": name, "path": str(path), "size": size, "batch": batch, "threads": threads}
    setting = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    start = "import json, os\nout = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)\n"
    command = python_command(start + setting + body + _MEASURE)
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - the code is our own, except for constants
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise EngineError(f"Measuring the memory of '{name}' ended with {done.returncode}: {last[0]}")
    return PeakMemory.model_validate_json(done.stdout)
