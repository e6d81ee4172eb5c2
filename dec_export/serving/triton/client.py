"""A client of Triton Inference Server, by HTTP or gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # tritonclient ships no types

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dec_export.errors import ServingError

_TIMEOUT_SECONDS = 60
# Tensors by name, of whatever type the server gives them; None if it left one out.
Answer = dict[str, NDArray[Any] | None]


class ModelCounts(BaseModel):
    """What a server has counted for one model.

    Attributes:
        version: of the model.
        inferences: images that were answered.
        executions: batches that ran.
        successes, failures: requests.
        mean_microseconds: that a successful request took.
        mean_queue_microseconds: that it waited for.
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
    """A server that is asked by HTTP or gRPC.

    Attributes:
        url: HOST:PORT.
        protocol: "http" or "grpc".
        library: the module of tritonclient for that protocol.
        connection: its client.
    """

    url: str
    protocol: str
    library: Any  # tritonclient has no types
    connection: Any

    def infer(self, model: str, name: str, value: NDArray[Any], outputs: Sequence[str]) -> Answer:
        """The outputs of a model for one input tensor, called `name`.

        Raises:
            ServingError: if the server answers with an error, or not at all.
        """
        kind = "BYTES" if value.dtype == object else "FP32"
        tensor = self.library.InferInput(name, list(value.shape), kind)
        tensor.set_data_from_numpy(value)
        wanted = [self.library.InferRequestedOutput(output) for output in outputs]
        answer = self._ask(lambda: self.connection.infer(model, [tensor], outputs=wanted, **self._limits()))
        return {output: answer.as_numpy(output) for output in outputs}

    def outputs_of(self, model: str) -> list[str]:
        """The names of the model's outputs.

        Raises:
            ServingError: if the server does not have the model.
        """
        found = self._ask(lambda: self.connection.get_model_metadata(model, **self._as_json()))
        return [output["name"] for output in found["outputs"]]

    def counts_of(self, model: str) -> ModelCounts:
        """What the server has counted for the model's newest version."""
        found = self._ask(lambda: self.connection.get_inference_statistics(model, **self._as_json()))
        return _counts(found["model_stats"][-1])

    def close(self) -> None:
        """Close the connection; the server would wait for it when it ends."""
        self.connection.close()

    def _as_json(self) -> dict[str, Any]:
        return {"as_json": True, **self._limits()} if self.protocol == "grpc" else {}

    def _limits(self) -> dict[str, int]:
        """The time limit of a request by gRPC; an HTTP connection has its own."""
        return {"client_timeout": _TIMEOUT_SECONDS} if self.protocol == "grpc" else {}

    def _ask(self, question: Callable[[], Any]) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return question()
        except InferenceServerException as error:
            raise ServingError(f"The server at {self.url} answered: {error.message()}") from error
        except Exception as error:  # of sockets, gevent and gRPC, which have classes of their own
            raise ServingError(f"The server at {self.url} does not answer by {self.protocol}: {error}") from error


def connect(url: str, protocol: str) -> Client:
    """A client of the server at HOST:PORT, which is not asked yet; `protocol` is "http" or "grpc".

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
        raise ServingError("The client is not installed: pip install 'dec-export[triton]'.") from error
    return Client(address, protocol, library, connection)


def _counts(stats: Mapping[str, Any]) -> ModelCounts:
    """The counts in what tritonclient gives as JSON; by gRPC its numbers are text."""
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
