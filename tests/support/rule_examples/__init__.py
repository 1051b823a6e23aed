"""An example or more of every op rule, a file for each of `fxprune/rules`."""

from tests.support.rule_examples import (
    convolution,
    copies,
    deformable,
    distances,
    fake_quantisation,
    fourier,
    indexing,
    joins,
    matmul,
    movement,
    norm,
    pointwise,
    reduction,
    regions_of_interest,
    resample,
    triangle,
)
from tests.support.rule_examples.base import Around, Example, inputs

__all__ = ["EXAMPLES", "Around", "Example", "inputs"]

EXAMPLES: tuple[Example, ...] = (
    *convolution.EXAMPLES,
    *copies.EXAMPLES,
    *deformable.EXAMPLES,
    *distances.EXAMPLES,
    *fake_quantisation.EXAMPLES,
    *fourier.EXAMPLES,
    *indexing.EXAMPLES,
    *joins.EXAMPLES,
    *matmul.EXAMPLES,
    *movement.EXAMPLES,
    *norm.EXAMPLES,
    *pointwise.EXAMPLES,
    *reduction.EXAMPLES,
    *regions_of_interest.EXAMPLES,
    *resample.EXAMPLES,
    *triangle.EXAMPLES,
)
