"""The colours of all pictures, safe for colour-blind readers: M. Okabe, K. Ito, Color universal design, 2008."""

from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Without yellow, which is too pale for a line."""
BLUE, ORANGE, GREY = COLOURS[0], COLOURS[5], "#7F7F7F"
STYLES = ("-", "--", "-.", ":")


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line.

    Example:
        >>> line_style(0), line_style(8)
        ({'color': '#0072B2', 'linestyle': '-'}, {'color': '#D55E00', 'linestyle': '--'})
    """
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}
