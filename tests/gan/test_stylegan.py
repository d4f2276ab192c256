"""StyleGAN: names and shapes of GenForce's layout, truncation, mixing, noise, growing, discriminator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ohlora.gan.stylegan import (
    Noise,
    StyleDiscriminator,
    StyleGANConfig,
    StyleGenerator,
    fused_kernel,
    instance_norm,
    minibatch_deviation,
    mix_styles,
    pixel_norm,
    update_average,
)

SMALL = StyleGANConfig(
    resolution=32, z_dim=12, w_dim=16, mapping_layers=3, mapping_fmaps=20, fmaps_base=256, fmaps_max=16
)


def generator(config: StyleGANConfig = SMALL, seed: int = 0) -> StyleGenerator:
    """Random weights, with noise that shows and an average style that is not zero."""
    torch.manual_seed(seed)
    network = StyleGenerator(config).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("apply_noise.weight", "w_avg", "synthesis.layer0.const")):
                value.normal_()
    return network


def latents(n: int, dim: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_names_and_shapes_are_genforces() -> None:
    state = {name: tuple(value.shape) for name, value in StyleGenerator(SMALL).state_dict().items()}
    assert state["mapping.dense0.weight"] == (20, 12)
    assert state["mapping.dense2.bias"] == (16,)
    assert state["truncation.w_avg"] == (16,)
    assert state["synthesis.lod"] == ()
    assert state["synthesis.layer0.const"] == (1, 16, 4, 4)
    assert "synthesis.layer0.weight" not in state
    assert state["synthesis.layer6.weight"] == (8, 16, 3, 3)
    assert state["synthesis.layer6.blur.kernel"] == (8, 1, 3, 3)
    assert "synthesis.layer7.blur.kernel" not in state
    assert state["synthesis.layer7.apply_noise.noise"] == (1, 1, 32, 32)
    assert state["synthesis.layer7.apply_noise.weight"] == (8,)
    assert state["synthesis.layer7.style.weight"] == (16, 16)
    assert state["synthesis.output3.weight"] == (3, 8, 1, 1)
    critic = {name: tuple(value.shape) for name, value in StyleDiscriminator(SMALL).state_dict().items()}
    assert critic["input0.weight"] == (8, 3, 1, 1)
    assert critic["layer1.weight"] == (16, 8, 3, 3)
    assert critic["layer1.blur.kernel"] == (8, 1, 3, 3)
    assert critic["layer6.weight"] == (16, 17, 3, 3)
    assert critic["layer7.weight"] == (16, 256)
    assert critic["layer8.weight"] == (1, 16)


def test_full_size_has_the_layers_that_the_original_names() -> None:
    critic = StyleDiscriminator(StyleGANConfig(fmaps_max=8))
    assert critic.last_layers == ("layer12", "layer13", "layer14")
    assert critic.get_submodule("layer14").weight.shape == (1, 8)
    assert StyleGANConfig().layers == 14
    assert [StyleGANConfig().channels(r) for r in (4, 32, 64, 256)] == [512, 512, 256, 64]


def test_one_latent_is_one_picture_and_lengths_do_not_matter() -> None:
    network, z = generator(), latents(3)
    with torch.no_grad():
        image = network(z)
        assert image.shape == (3, 3, 32, 32)
        assert torch.equal(image, network(z))
        torch.testing.assert_close(network(5 * z), image, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(network(z[1:2]), image[1:2], rtol=1e-4, atol=1e-4)


def test_noise_is_constant_random_by_a_generator_or_none() -> None:
    network, z = generator(), latents(2)

    def draw(noise: Noise, seed: int | None = None) -> Tensor:
        source = None if seed is None else torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return network(z, noise=noise, generator=source)

    assert torch.equal(draw("random", 1), draw("random", 1))
    assert not torch.allclose(draw("random", 1), draw("random", 2))
    assert not torch.allclose(draw("constant"), draw("none"))
    for layer in range(SMALL.layers):
        network.get_submodule(f"synthesis.layer{layer}.apply_noise").weight.data.zero_()
    torch.testing.assert_close(draw("constant"), draw("none"))
    with pytest.raises(ValueError, match="generator"):
        draw("random")


def test_truncation_moves_styles_to_the_average() -> None:
    network = generator()
    w = network.mapping(latents(4))
    average = network.truncation.w_avg
    assert torch.equal(network.truncation(w), w[:, None].expand(-1, 8, -1))
    torch.testing.assert_close(network.truncation(w, 0.0), average.expand(4, 8, -1))
    half = network.truncation(w, 0.5, truncated=3)
    torch.testing.assert_close(half[:, 2], average + 0.5 * (w - average))
    torch.testing.assert_close(half[:, 3], w)


def test_tracking_keeps_a_running_mean() -> None:
    network = generator()
    before, w = network.truncation.w_avg.clone(), torch.ones(5, 16)
    network.truncation.track(w, decay=0.9)
    torch.testing.assert_close(network.truncation.w_avg, 0.9 * before + 0.1)


def test_mixing_takes_coarse_layers_of_one_and_fine_ones_of_the_other() -> None:
    a, b = torch.zeros(2, 8, 16), torch.ones(2, 8, 16)
    mixed = mix_styles(a, b, 3)
    assert mixed[:, :3].eq(0).all()
    assert mixed[:, 3:].eq(1).all()


def test_levels_of_detail_fade() -> None:
    network, z = generator(), latents(2)
    with torch.no_grad():
        coarse = network(z, lod=1)
        assert torch.equal(coarse[..., ::2, ::2], coarse[..., 1::2, 1::2])  # nearest neighbour of half size
        torch.testing.assert_close(network(z, lod=1e-6), network(z, lod=0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(network(z, lod=1 - 1e-6), coarse, rtol=1e-3, atol=1e-3)
        fading = 0.5 * coarse + 0.5 * network(z, lod=0)
        torch.testing.assert_close(network(z, lod=0.5), fading, rtol=1e-4, atol=1e-4)
        network.synthesis.lod.fill_(1)
        assert torch.equal(network(z), coarse)
    with pytest.raises(ValueError, match="level of detail 4"):
        network(z, lod=4)


def test_the_discriminator_fades_as_the_generator_does() -> None:
    torch.manual_seed(0)
    critic = StyleDiscriminator(SMALL).eval()
    image = latents(4, 3 * 32 * 32).view(4, 3, 32, 32)
    with torch.no_grad():
        for lod in (1.0, 2.0, 3.0):
            torch.testing.assert_close(
                critic(image, lod=lod - 1e-6), critic(image, lod=lod), rtol=0, atol=1e-4
            )
        assert not torch.allclose(critic(image, lod=0.5), critic(image, lod=1.0))


@pytest.mark.parametrize("form", ["", "label_concat", "label_projection"])
def test_labels_change_picture_and_score(form: str) -> None:
    shape = {"resolution": 16, "z_dim": 12, "w_dim": 16, "mapping_layers": 2, "mapping_fmaps": 16}
    width = 5 if form else 0
    config = StyleGANConfig(
        **shape, fmaps_base=128, fmaps_max=8, label_dim=3, label_width=width, **{form: True} if form else {}
    )
    network, critic = generator(config), StyleDiscriminator(config)
    assert network.mapping.get_submodule("dense0").weight.shape[1] == 12 + (width or 12)
    z, labels = latents(2), torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 2.0]])
    image = network(z, labels)
    assert not torch.allclose(image, network(z, labels + 1))
    assert critic(image, labels).shape == (2, 1)
    assert not torch.allclose(critic(image, labels), critic(image, labels + 1))
    for wrong in (None, labels[:, :2], labels[:1]):
        with pytest.raises(ValueError, match="labels must be"):
            network(z, wrong)
    with pytest.raises(ValueError, match="float32"):
        network(z, labels.double())
    with pytest.raises(ValueError, match="labels must be None"):
        generator()(z, labels)
    with pytest.raises(ValueError, match="exclude"):
        StyleGANConfig(label_dim=3, label_concat=True, label_projection=True)


def test_gradients_reach_everything_that_draws() -> None:
    network = generator().train()
    network(latents(2)).square().mean().backward()
    drawn = {name for name, p in network.named_parameters() if p.grad is not None}
    rest = {name for name, _ in network.named_parameters()} - drawn
    assert all("output" in name and "output3" not in name for name in rest)  # pictures of coarser levels


def test_the_penalty_of_real_gradients_is_differentiable() -> None:
    critic = StyleDiscriminator(StyleGANConfig(resolution=128, fmaps_base=512, fmaps_max=8))
    image = latents(2, 3 * 128 * 128).view(2, 3, 128, 128).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(image).sum(), image, create_graph=True)
    gradient.square().sum().backward()
    assert all(critic.get_submodule(f"layer{i}").weight.grad is not None for i in range(12))


def test_norms() -> None:
    x = latents(3, 4 * 5 * 5).view(3, 4, 5, 5) * 3 + 2
    y = instance_norm(x)
    torch.testing.assert_close(y.mean((2, 3)), torch.zeros(3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.square().mean((2, 3)), torch.ones(3, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixel_norm(torch.tensor([[3.0, 4.0]])).square().mean(1), torch.ones(1))


def test_a_fused_kernel_doubles_by_nearest_neighbour() -> None:
    """Nearest-neighbour upsampling and a 3x3 convolution are one transposed 4x4 convolution."""
    x, weight = latents(1, 2 * 6 * 6).view(1, 2, 6, 6), latents(1, 3 * 2 * 9, seed=2).view(3, 2, 3, 3)
    plain = torch.nn.functional.conv2d(
        torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1
    )
    kernel = fused_kernel(weight.flip((2, 3))).transpose(0, 1)
    fused = torch.nn.functional.conv_transpose2d(x, kernel, stride=2, padding=1)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def test_the_minibatch_deviation_compares_within_groups() -> None:
    x = torch.tensor([0.0, 10.0, 2.0, 16.0]).view(4, 1, 1, 1).expand(4, 2, 2, 2)
    seen = minibatch_deviation(x, 2)[:, 0, 0, 0]  # groups are (0, 2) and (1, 3)
    torch.testing.assert_close(seen, torch.tensor([1.0, 3.0, 1.0, 3.0]))
    assert minibatch_deviation(x[:3], 2).shape == (3, 1, 2, 2)
    assert float(minibatch_deviation(x[:1], 2).max()) < 1e-3


def test_an_average_follows_parameters_and_copies_buffers() -> None:
    model, average = generator(seed=0), generator(seed=1)
    model.truncation.w_avg.fill_(7.0)
    before, now = average.synthesis.layer1.bias.clone(), model.synthesis.layer1.bias
    update_average(average, model, 0.9)
    torch.testing.assert_close(average.synthesis.layer1.bias, 0.9 * before + 0.1 * now)
    assert average.truncation.w_avg.eq(7).all()


@pytest.mark.parametrize(
    "wrong", [{"resolution": 48}, {"resolution": 4}, {"z_dim": 0}, {"fmaps_base": 8}, {"group_size": 0}]
)
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StyleGANConfig(**wrong)


def test_wrong_shapes_are_refused() -> None:
    network = generator()
    with pytest.raises(ValueError, match=r"latents must be \[n, 12\]"):
        network(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="styles must be"):
        network.synthesis(torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match="portraits must be"):
        StyleDiscriminator(SMALL)(torch.zeros(1, 3, 16, 16))
    assert math.isclose(float(network.synthesis.lod), 0)
