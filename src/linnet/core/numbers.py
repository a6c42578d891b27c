"""Numbers given as options, checked."""

import math
from typing import Any

__all__ = ["check_number"]


def check_number(low: float, **named: Any) -> None:
    """Refuse what is not a finite number >= low."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (low <= value < math.inf):
            raise ValueError(f"{name} must be a finite number >= {low:g}, however: {value!r}")
