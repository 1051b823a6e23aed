"""What a refused trial of narrow widths is put down to."""

from collections.abc import Sequence

import pytest

from fxprune.analysis.compact_trial import culprits


@pytest.mark.parametrize("guilty", [{0}, {3}, {1, 2}, {0, 4}, {0, 1, 2, 3, 4}], ids=str)
def test_groups_that_are_refused_alone_are_found(guilty: set[int]) -> None:
    assert {*culprits(lambda groups: bool(guilty & {*groups}), range(5))} == guilty


def test_groups_that_are_refused_together_are_kept_together() -> None:
    def refuses(groups: Sequence[int]) -> bool:
        return {1, 3} <= {*groups}

    assert {*culprits(refuses, range(5))} == {*range(5)}
    assert {*culprits(refuses, [1, 3])} == {1, 3}
