import pytest
import torch
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.networks import Generator, GeneratorConfig, ModulatedConv2d, SynthesisLayer

SMALL = GeneratorConfig(
    resolution=32, z_dim=8, w_dim=16, channel_base=128, channel_max=16, channel_min=8, mapping_layers=2
)
CONDITIONS = len(CONDITION_NAMES)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_generator(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    generator = Generator(SMALL)
    for module in generator.modules():  # at its initial 0 the noise could be missing and no test would tell
        if isinstance(module, SynthesisLayer):
            module.noise_strength.data.fill_(0.1)
    return generator


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_equals_one_convolution_per_sample(demodulate: bool) -> None:
    """The activations are scaled instead of the weights: StyleGAN2's equations 1 and 3, per sample."""
    torch.manual_seed(1)
    layer = ModulatedConv2d(6, 5, 3, w_dim=4, demodulate=demodulate)
    x, w = torch.randn(3, 6, 7, 7), torch.randn(3, 4)
    y, demodulation = layer(x, w)
    if demodulation is not None:
        y = y * demodulation
    style = layer.affine(w)
    for i in range(3):
        weight = layer.weight * layer.gain * style[i][None, :, None, None]
        if demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        torch.testing.assert_close(
            y[i : i + 1], F.conv2d(x[i : i + 1], weight, padding=1), rtol=1e-4, atol=1e-5
        )


def test_frozen_generator_draws_the_same() -> None:
    generator = small_generator()
    z, c = torch.randn(2, 8, generator=random()), torch.randn(2, CONDITIONS, generator=random(1))
    before = generator(z, c).detach()
    frozen = generator.freeze()
    torch.testing.assert_close(frozen(z, c), before)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_draws_every_resolution(resolution: int) -> None:
    image = small_generator()(torch.zeros(2, 8), torch.zeros(2, CONDITIONS), resolution)
    assert image.shape == (2, 3, resolution, resolution)
    assert image.dtype == torch.float32


def test_channels_follow_base_max_and_min() -> None:
    config = GeneratorConfig(channel_base=3072, channel_max=256, channel_min=32)
    assert [config.channels(r) for r in (4, 8, 16, 32, 64, 128)] == [256, 256, 192, 96, 48, 32]


def test_weights_and_pictures_are_functions_of_the_seed() -> None:
    z, c = torch.randn(1, 8, generator=random()), torch.zeros(1, CONDITIONS)
    assert torch.equal(small_generator(3)(z, c), small_generator(3)(z, c))
    assert not torch.equal(small_generator(3)(z, c), small_generator(4)(z, c))


def test_a_picture_does_not_depend_on_its_batch() -> None:
    generator = small_generator()
    z, c = torch.randn(3, 8, generator=random()), torch.randn(3, CONDITIONS, generator=random(1))
    torch.testing.assert_close(generator(z, c)[1:2], generator(z[1:2], c[1:2]), rtol=1e-4, atol=1e-4)


def test_latent_conditions_and_nuisance_all_change_the_picture() -> None:
    generator = small_generator()
    z, c = torch.zeros(1, 8), torch.zeros(1, CONDITIONS)
    base = generator(z, c)
    assert not torch.allclose(base, generator(z + 1, c))
    assert not torch.allclose(base, generator(z, c, nuisance=torch.ones(1, 3)))
    for column in range(CONDITIONS):
        moved = c.clone()
        moved[0, column] = 0.5
        assert not torch.allclose(base, generator(z, moved)), CONDITION_NAMES[column]


def test_every_parameter_receives_a_gradient() -> None:
    generator = small_generator()
    generator(torch.randn(2, 8), torch.randn(2, CONDITIONS)).square().mean().backward()
    without = [
        name for name, p in generator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []


def test_wrong_shapes_and_resolutions_are_named() -> None:
    generator = small_generator()
    with pytest.raises(ValueError, match="latents must be"):
        generator(torch.zeros(1, 5), torch.zeros(1, CONDITIONS))
    with pytest.raises(ValueError, match="conditions must be"):
        generator(torch.zeros(2, 8), torch.zeros(1, CONDITIONS))
    with pytest.raises(ValueError, match="resolution 64"):
        generator(torch.zeros(1, 8), torch.zeros(1, CONDITIONS), 64)
