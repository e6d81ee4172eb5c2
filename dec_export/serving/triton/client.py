"""A client of Triton Inference Server for HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # tritonclient ships no types

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dec_export.errors import ServingError

_TIMEOUT_SECONDS = 60
# The tensors by name, with the server's types; a tensor that the server left out is None.
Answer = dict[str, NDArray[Any] | None]


class ModelCounts(BaseModel):
    """A server's statistics of one model.

    Attributes:
        version: the version of the model.
        inferences: the number of images that were answered.
        executions: the number of batches that ran.
        successes, failures: the numbers of requests that succeeded and failed.
        mean_microseconds: the mean time of a successful request.
        mean_queue_microseconds: the part of this time that the request waited.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    inferences: int
    executions: int
    successes: int
    failures: int
    mean_microseconds: int
    mean_queue_microseconds: int


@dataclass(frozen=True)
class Client:
    """A connection to a server by HTTP or gRPC.

    Attributes:
        url: the server's address as HOST:PORT.
        protocol: "http" or "grpc".
        library: the module of tritonclient for that protocol.
        connection: the client of tritonclient.
    """

    url: str
    protocol: str
    library: Any  # tritonclient has no types.
    connection: Any

    def infer(self, model: str, name: str, value: NDArray[Any], outputs: Sequence[str]) -> Answer:
        """Return the outputs of a model for one input tensor, called `name`.

        Raises:
            ServingError: if the server answers with an error or does not answer.
        """
        kind = "BYTES" if value.dtype == object else "FP32"
        tensor = self.library.InferInput(name, list(value.shape), kind)
        tensor.set_data_from_numpy(value)
        wanted = [self.library.InferRequestedOutput(output) for output in outputs]
        answer = self._ask(lambda: self.connection.infer(model, [tensor], outputs=wanted, **self._limits()))
        return {output: answer.as_numpy(output) for output in outputs}

    def outputs_of(self, model: str) -> list[str]:
        """Return the names of the model's outputs.

        Raises:
            ServingError: if the server does not have the model.
        """
        found = self._ask(lambda: self.connection.get_model_metadata(model, **self._as_json()))
        return [output["name"] for output in found["outputs"]]

    def counts_of(self, model: str) -> ModelCounts:
        """Return the server's statistics of the model's newest version."""
        found = self._ask(lambda: self.connection.get_inference_statistics(model, **self._as_json()))
        return _counts(found["model_stats"][-1])

    def close(self) -> None:
        """Close the connection, for which the server would otherwise wait when it stops."""
        self.connection.close()

    def _as_json(self) -> dict[str, Any]:
        return {"as_json": True, **self._limits()} if self.protocol == "grpc" else {}

    def _limits(self) -> dict[str, int]:
        """Return the time limit of a gRPC request; an HTTP connection has its own limit."""
        return {"client_timeout": _TIMEOUT_SECONDS} if self.protocol == "grpc" else {}

    def _ask(self, question: Callable[[], Any]) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return question()
        except InferenceServerException as error:
            raise ServingError(f"The server at {self.url} answered: {error.message()}") from error
        except Exception as error:  # Sockets, gevent and gRPC have exception classes of their own.
            raise ServingError(f"The server at {self.url} does not answer by {self.protocol}: {error}") from error


def connect(url: str, protocol: str) -> Client:
    """Return a client of the server at HOST:PORT, which sends no request yet; `protocol` is "http" or "grpc".

    Raises:
        ServingError: if tritonclient is not installed, or the address or the protocol is unknown.
    """
    if protocol not in ("http", "grpc"):
        raise ServingError(f"Unknown protocol '{protocol}', expected http or grpc.")
    address = url.removeprefix(f"{protocol}://").rstrip("/")
    if not address or "/" in address:
        raise ServingError(f"Expected the server's address as HOST:PORT, found '{url}'.")
    try:
        if protocol == "http":
            import tritonclient.http as library

            connection = library.InferenceServerClient(
                address, connection_timeout=_TIMEOUT_SECONDS, network_timeout=_TIMEOUT_SECONDS
            )
        else:
            import tritonclient.grpc as library

            connection = library.InferenceServerClient(address)
    except ImportError as error:
        raise ServingError("tritonclient is not installed: pip install 'dec-export[triton]'.") from error
    return Client(address, protocol, library, connection)


def _counts(stats: Mapping[str, Any]) -> ModelCounts:
    """Read the statistics from tritonclient's JSON, whose numbers are text when they come by gRPC."""
    inference = stats.get("inference_stats", {})
    success, queue = inference.get("success", {}), inference.get("queue", {})
    successes = int(success.get("count", 0))
    return ModelCounts(
        version=int(stats.get("version", 0)),
        inferences=int(stats.get("inference_count", 0)),
        executions=int(stats.get("execution_count", 0)),
        successes=successes,
        failures=int(inference.get("fail", {}).get("count", 0)),
        mean_microseconds=int(success.get("ns", 0)) // max(1, successes) // 1000,
        mean_queue_microseconds=int(queue.get("ns", 0)) // max(1, successes) // 1000,
    )
