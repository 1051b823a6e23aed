"""Which line of a traceback a message shows."""

from pathlib import Path

import pytest

import fxprune
from fxprune.user_lines import user_line


def test_a_folder_whose_name_begins_with_ours_is_the_users() -> None:
    path = f"{Path(fxprune.__file__).parent}_models/net.py"
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("\n1 / 0", path, "exec"))
    assert "fxprune_models/net.py:2" in user_line(caught.value)
