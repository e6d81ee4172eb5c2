"""Peak memory of one subject, in a fresh process, as a server would hold it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from dec_export.children import python_command
from dec_export.errors import EngineError

# ONNX Runtime is measured as it serves: with the engine's own settings, without PyTorch, which only the proof needs.
_ONNXRUNTIME = """
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.enable_mem_pattern = False
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
run = lambda images: session.run(None, {"image": images})
"""
_SUBJECT = """
from pathlib import Path
import numpy
from dec_export.bench.subjects import scratch, subject
from dec_export.bundle import Bundle
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


def peak_memory(name: str, path: Path, size: int, batch: int, threads: int) -> dict[str, int] | None:
    """Bytes that a process holds at most while it runs the subject twice ("peak"), and held "before" the first run.

    None where the system does not tell. path: the bundle, or the ONNX file for an engine of ONNX Runtime on the CPU.
    Raises EngineError when the process fails.
    """
    if not Path("/proc/self/status").exists():
        return None
    values = {"name": name, "path": str(path), "size": size, "batch": batch, "threads": threads}
    setting = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    start = "import json, os\nout = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)\n"
    body = _ONNXRUNTIME if path.suffix == ".onnx" else _SUBJECT
    command = python_command(start + setting + body + _MEASURE)
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own code, constants apart
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise EngineError(f"Measuring the memory of '{name}' ended with {done.returncode}: {last[0]}")
    used: dict[str, int] = json.loads(done.stdout)
    return used
