"""What is in a portrait? A face parser, formulas that read attributes off its masks, and their calibration.

`attributes_of(images, parser, calibration)` is the whole chain for any image.
"""

from ohlora.labeling.calibration import Calibration, CalibrationError, attributes_of
from ohlora.labeling.formulas import ALGORITHMS, Algorithm, measure
from ohlora.labeling.parser import Parser

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Calibration",
    "CalibrationError",
    "Parser",
    "attributes_of",
    "measure",
]
