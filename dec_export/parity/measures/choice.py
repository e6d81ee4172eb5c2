"""The measure of a discrete canonicalizer's choices: how near they are to a tie, and whether an engine's are right."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dec_export.parity.choices import NO_CANDIDATE, Choices
from dec_export.parity.gate import MAX_RATIO
from dec_export.parity.measures.base import Frozen, Measure, Section
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Row
from dec_export.parity.runs import EngineRun, ReferenceRuns


class ChoiceFacts(Frozen):
    """The choices for the images of a proof and for their locally scaled copies.

    candidates: the number of warps to choose from.
    noise: how far a difference of two scores may be from float64's.
    smallest_gap: the smallest distance between the best score of an image and the second best.
    near_ties, near_ties_scaled: the number of images, and of copies, for which rounding explains another choice.
    judged_elsewhere: the number of images and copies that are judged at an engine's own choice, which is not that of
    the float64 reference.
    """

    candidates: int
    noise: Number
    smallest_gap: Number
    near_ties: int
    near_ties_scaled: int
    judged_elsewhere: int


class Choice(Section):
    """The choices of a discrete canonicalizer; None, and absent from the JSON, for a model that has none.

    wrong: a sentence for each choice that rounding does not explain; they are not part of the JSON.
    """

    name: ClassVar[str] = "choice"
    heading: ClassVar[str | None] = "Choice"

    choice: ChoiceFacts | None = Field(default=None, exclude_if=lambda facts: facts is None)
    wrong: tuple[str, ...] = Field(default=(), exclude=True)

    @property
    def measured(self) -> bool:
        """Whether the model chooses between warps."""
        return self.choice is not None

    def failures(self) -> list[str]:
        """Return a sentence for each choice that rounding does not explain."""
        return list(self.wrong)

    def rows(self) -> list[Row]:
        """Return how many images are near a tie, and how near."""
        found = self.choice
        if found is None:
            return []
        images = f"{found.near_ties} images, {found.near_ties_scaled} locally scaled copies"
        gap = f"smallest gap of two scores {number(found.smallest_gap)}, noise {number(found.noise)}"
        return [
            Row("choices near a tie", f"{images}; {gap}"),
            Row("judged at the engine's own choice", str(found.judged_elsewhere)),
        ]


class ChoiceMeasure(Measure["Choices | None", Choice]):
    """The measure of the choices of a discrete canonicalizer."""

    section = Choice

    def reference(self, runs: ReferenceRuns) -> Choices | None:
        """Return the choices of the float64 reference for the images, or None without a discrete canonicalizer."""
        return runs.outputs.choices

    def judge(self, reference: Choices | None, run: EngineRun) -> Choice:
        """Compare the engine's choices with those that rounding explains."""
        scaled = run.scaled_reference.choices
        if reference is None or scaled is None:
            return Choice()
        pairs = ((run.reference, run.outputs), (run.scaled_reference, run.scaled))
        facts = ChoiceFacts(
            candidates=reference.scores.shape[1],
            noise=reference.noise,
            smallest_gap=reference.smallest_gap,
            near_ties=len(reference.near_ties),
            near_ties_scaled=len(scaled.near_ties),
            judged_elsewhere=sum(len(truth.moved_by(outputs)) for truth, outputs in pairs),
        )
        names = run.inputs.images.names
        wrong = [
            *_wrong(reference, run.reference.chosen_by(run.outputs), names),
            *_wrong(scaled, run.scaled_reference.chosen_by(run.scaled), [f"the copy of {name}" for name in names]),
        ]
        return Choice(choice=facts, wrong=tuple(wrong))


def _wrong(choices: Choices, chosen: list[int], names: tuple[str, ...] | list[str]) -> list[str]:
    found = []
    for i, candidate in enumerate(chosen):
        if candidate == NO_CANDIDATE:
            found.append(f"{names[i]} is warped by a phi that is none of the candidates")
        elif not choices.admissible[i, candidate]:
            found.append(
                f"{names[i]} is warped by candidate {candidate}, whose score is {choices.gaps[i, candidate]:.3g} below "
                f"that of candidate {choices.best[i]}, more than {MAX_RATIO:g} x the noise of {choices.noise:.3g}"
            )
    return found
