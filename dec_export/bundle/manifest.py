"""The manifest of a bundle: all facts about the bundle that a reader can know without its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal  # values of JSON

from pydantic import AfterValidator, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from dec_export.bundle.plans import PlanEntry, PlanName, Strict
from dec_export.data.preprocessing import Preprocessing
from dec_export.formats import BACKBONE_FORMATS, SOLVER_FORMATS, Format
from dec_export.forms import Forms, Solver
from dec_export.names import is_phi, mapped_place
from dec_export.recipe.model import Recipe
from dec_export.reference.weights.source import WeightSource

SCHEMA_VERSION: Final = 1


def _one_of(*known: Format) -> Callable[[Format], Format]:
    def check(found: Format) -> Format:
        if found not in known:
            raise ValueError(f"expected one of {', '.join(known)}, found {found}")
        return found

    return check


_Precision = Annotated[Format, AfterValidator(_one_of(*BACKBONE_FORMATS))]
_SolverPrecision = Annotated[Format, AfterValidator(_one_of(*SOLVER_FORMATS))]
_PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class FileEntry(Strict):
    """Size in bytes and SHA-256 of one file of the bundle."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TensorEntry(Strict):
    """A model input or output; `shape` has a symbol for the batch."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class EngineVerdict(Strict):
    """The verdict on one engine that the user asked for.

    gate: the gate of its parity report, or "not built" or "not run". reason: why it was not built or not run.
    details: the facts that an engine reports about itself (runtime, version, device, threads). In JSON, the details
    stand beside gate and reason.
    """

    gate: Literal["pass", "fail", "not run", "not built"]
    reason: str | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_details(
        cls, found: Any
    ) -> Any:  # pydantic passes the input before its validation, which may have any type
        if not isinstance(found, Mapping) or "details" in found:
            return found
        own = {key: found[key] for key in ("gate", "reason") if key in found}
        return {**own, "details": {key: value for key, value in found.items() if key not in own}}

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        dumped: dict[str, Any] = handler(self)
        reason = {} if self.reason is None else {"reason": self.reason}
        return {"gate": dumped["gate"], **reason, **dumped["details"]}


class Manifest(Strict):
    """All facts about a bundle that a reader can know without its model.

    engines: the verdict on every engine that the user asked for. plans: the TensorRT engines that the bundle holds.
    """

    schema_version: Literal[1]
    recipe: Recipe
    weights: WeightSource
    preprocessing: Preprocessing
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    solver: Solver
    precision: _Precision
    solver_precision: _SolverPrecision = Format.FP32
    opset: int
    gate: Literal["pass", "fail", "not run"]
    engines: dict[str, EngineVerdict]
    plans: dict[PlanName, PlanEntry] = Field(default_factory=dict)
    versions: dict[str, str]
    files: dict[_PlainName, FileEntry]

    @property
    def forms(self) -> Forms:
        """The form of the exported model."""
        names = [output.name for output in self.outputs]
        return Forms(
            solver=self.solver,
            precision=self.precision,
            solver_precision=self.solver_precision,
            tap=mapped_place(names),
            expose_phi=any(map(is_phi, names)),
        )

    def dump(self) -> dict[str, Any]:
        """Return the content of `manifest.json`."""
        return self.model_dump(mode="json")
