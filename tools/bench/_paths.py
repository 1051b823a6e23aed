"""Lets the tools of this folder import what others have. Import it before those."""

import sys
from pathlib import Path

TOOLS = Path(__file__).parent.parent
ROOT = TOOLS.parent
for _folder in (TOOLS / "shared", TOOLS / "bench"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))
