"""Examples of `fxprune.rules.triangle`."""

from fxprune.rules.triangle import Triangle
from tests.support.rule_examples.base import Example, Rows, run

EXAMPLES: tuple[Example, ...] = (
    Example(
        Triangle,
        "of a weight",
        run,
        6,
        (4,),
        ("a triangle of a matrix is taken here",) * 2,
        layers=lambda: (Rows(lambda w: w.tril()[:, :, None, None], 6, 8),),
    ),
    Example(Triangle, "of an image", lambda x: x.triu(1)),
)
