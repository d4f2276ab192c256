"""What is in a portrait? A face parser, classifiers, a property network, and formulas that read masks.

`Labeler.load(folders).read(images)` is the whole chain for any portraits; `measure` are the formulas alone.
"""

from ohlora.labeling.calibration import Calibration, CalibrationError
from ohlora.labeling.formulas import ALGORITHMS, Algorithm, measure
from ohlora.labeling.parser import Parser
from ohlora.labeling.scoring import Labeler, Reading

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Calibration",
    "CalibrationError",
    "Labeler",
    "Parser",
    "Reading",
    "measure",
]
