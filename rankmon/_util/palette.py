"""The colors of the Hessian's parts and of lines, in the tab, reports and examples.

Okabe and Ito's palette on light pages, lightened on dark ones. Lines have a contrast of at least 3
with their page, and readers with deuteranopia or protanopia can tell the parts apart; the parts
differ in dash and width too. `static/theme.js` has the same colors for the browser.
"""

PAGES = {"light": "#ffffff", "dark": "#303030"}
PARTS = {
    "light": {"H_L": "#0072b2", "H_o": "#009e73", "H_f": "#d55e00", "H_f_fixed": "#cc79a7"},
    "dark": {"H_L": "#4aa8e8", "H_o": "#3fc79a", "H_f": "#ff8a3d", "H_f_fixed": "#e79ac6"},
}
LINES = {
    "light": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#6b3a00", "#7a7a00", "#767676"),
    "dark": ("#4aa8e8", "#ff8a3d", "#3fc79a", "#e79ac6", "#f0e28a", "#b7b7ff", "#c4c4c4"),
}

# Lengths of strokes and gaps, in pixels of lines of width 2; none for a solid line.
DASHES: dict[str, tuple[int, ...]] = {
    "H_L": (),
    "H_o": (10, 3, 2, 3),
    "H_f": (14, 4),
    "H_f_fixed": (5, 4),
}
WIDTHS = {"H_L": 4.5, "H_o": 2.0, "H_f": 2.0, "H_f_fixed": 2.0}
