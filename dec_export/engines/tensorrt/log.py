"""TensorRT's log: errors as sentences, and the list of an engine's layers."""

from __future__ import annotations

from typing import Any  # TensorRT ships no types

from dec_export.engines.tensorrt import layers

# The keys are parts of TensorRT's error messages, and the values say what to do.
_REMEDIES = {
    "workspace": "raise --workspace or choose a smaller largest batch",
    "OutOfMemory": "raise --workspace or choose a smaller largest batch",
    "bad_alloc": "this machine has too little memory; choose a smaller backbone, or a machine with more memory",
}


class Log:
    """A logger for TensorRT that keeps errors and the message that lists the engine's layers."""

    def __init__(self, trt: Any) -> None:  # Both modules of TensorRT have no types.
        self.errors: list[str] = []
        self.contents: str | None = None
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    outer.errors.append(message)
                elif layers.is_contents(message):
                    outer.contents = message

        self.logger = Logger()

    def reason(self) -> str:
        """Return TensorRT's last error, with the remedy for a common error."""
        last = self.errors[-1] if self.errors else "it gives no reason"
        remedies = [remedy for sign, remedy in _REMEDIES.items() if sign in last]
        return f"{last}: {remedies[0]}" if remedies else last
