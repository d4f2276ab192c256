"""How is a portrait made from a latent and attributes? A StyleGAN2-like generator, distilled from portraits.

Who only draws needs `Face`, or `load_face` where any kind of face may come; the stages are
`ohlora.gan.training:train` and, for the original's ways, `ohlora.gan.variants.stage:train`.
"""

from ohlora.gan.face import Face
from ohlora.gan.loading import AnyFace, load_face
from ohlora.gan.variant_face import VariantFace

__all__ = ["AnyFace", "Face", "VariantFace", "load_face"]
