"""Where do portraits come from? A renderer with exact ground truth, and one storage format for all portraits.

`Portraits` is what other rooms read; `render_portrait` makes one picture and its mask from parameters.
"""

from ohlora.corpus.parameters import PortraitParameters, persona_parameters, sample_look, sample_parameters
from ohlora.corpus.portraits import CorpusError, Portraits
from ohlora.corpus.renderer import render_portrait

__all__ = [
    "CorpusError",
    "PortraitParameters",
    "Portraits",
    "persona_parameters",
    "render_portrait",
    "sample_look",
    "sample_parameters",
]
