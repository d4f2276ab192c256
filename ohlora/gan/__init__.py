"""How is a portrait made from a latent and attributes? A StyleGAN2-like generator, distilled from portraits.

Who only draws needs `Face`; the stage is `ohlora.gan.training:train`.
"""

from ohlora.gan.face import Face

__all__ = ["Face"]
