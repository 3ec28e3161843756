"""The colours of plots, contact sheets and frames. Those of the pages stand in report.css."""

# Plots. Okabe and Ito's, which are told apart with any colour vision.
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa3377"
INK, FAINT, LINES = "#202124", "#9aa0a6", "#e8eaed"

# Sheets, red, green and blue.
SHEET_PAPER, SHEET_INK, SHEET_FAINT, SHEET_EMPTY = (252, 252, 250), (32, 33, 36), (112, 114, 120), (226, 226, 222)

# Frames are told apart with any colour vision too, as their lightness differs. Kept images have none: the eye finds
# the others.
FRAME_COLOURS = {
    "detector": (213, 60, 0),
    "ssim_floor": (230, 159, 0),
    "ssim_ceiling": (150, 85, 190),
    "identity_floor": (20, 45, 115),
    "identity_margin": (85, 200, 235),
    "identity_ceiling": (95, 10, 45),
    "error": (120, 120, 120),
}
RIGHT, WRONG = (86, 190, 100), (190, 20, 40)
