import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.attributes import FaceClass
from ohlora.gan.losses import edge_difference, emphasis, psnr, reconstruction, wall_difference, weighted_mean


def pictures(seed: int, n: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_pictures_have_no_distance() -> None:
    x = pictures(0)
    assert reconstruction(x, x, torch.ones(2, 1, 16, 16)) == 0


@settings(max_examples=20)
@given(st.integers(0, 100), st.floats(0.1, 10))
def test_distance_is_positive_and_blind_to_the_scale_of_weights(seed: int, factor: float) -> None:
    x, y, weights = pictures(seed), pictures(seed + 1), torch.rand(2, 1, 16, 16) + 0.1
    one, other = reconstruction(x, y, weights), reconstruction(x, y, factor * weights)
    assert one > 0
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_may_be_anything_costs_nothing_and_gets_no_gradient() -> None:
    target, weights = pictures(0), torch.ones(2, 1, 16, 16)
    weights[:, :, 4:8, 4:8] = 0
    output = target.clone()
    output[:, :, 4:8, 4:8] = 9
    output.requires_grad_(True)
    loss = reconstruction(output, target, weights)
    assert loss == 0
    other = pictures(1).requires_grad_(True)
    reconstruction(other, target, weights).backward()
    assert other.grad is not None
    assert other.grad[:, :, 4:8, 4:8].abs().max() == 0
    assert other.grad[:, :, :4].abs().min() > 0


def test_edges_ignore_a_constant_offset_and_see_a_line() -> None:
    weights = torch.ones(1, 1, 8, 8)
    assert edge_difference(torch.full((1, 3, 8, 8), 0.3), weights) == 0
    line = torch.zeros(1, 3, 8, 8)
    line[:, :, 4] = 1
    torch.testing.assert_close(edge_difference(line, weights), torch.tensor(2 / 7))


def test_weighted_mean_by_hand() -> None:
    values = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    assert weighted_mean(values, torch.tensor([3.0, 1.0]).view(1, 1, 1, 2)) == 1.5
    assert weighted_mean(values, torch.zeros(1, 1, 1, 2)) == 0


def test_eyes_weigh_more_than_skin_and_skin_more_than_background() -> None:
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 10:60, 10:60] = FaceClass.SKIN
    masks[:, 20:24, 20:30] = FaceClass.LEFT_EYE
    weights = emphasis(masks)[0, 0]
    assert weights[22, 25] > weights[50, 50] > weights[2, 2] > 0
    assert weights[19, 25] == weights[22, 25]  # lids around the eye count as the eye


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(1, 3, 4, 4)
    torch.testing.assert_close(psnr(x + 0.2, x), torch.tensor([20.0]))  # 10 log10(4 / 0.04)


def test_a_blotched_wall_differs_by_what_its_brightness_says() -> None:
    scales = torch.tensor([30.0, 3.0])
    flat, walls = torch.full((2, 3, 16, 16), 0.1), torch.zeros(2, 16, 16, dtype=torch.bool)
    walls[:, :8] = True
    blotched = flat.clone()
    blotched[0, :, :8, ::2] += 6 / 127.5  # mean 3 and deviation 3 grey levels off
    deviation = (3.0**2 + 0.3**2) ** 0.5 - 0.3
    expected = (0.5 * (3 / 30) ** 2 / 0.3 + (deviation / 3 - 0.15)) / 4  # smooth L1, one of two pictures
    torch.testing.assert_close(
        wall_difference(blotched, flat, walls, scales), torch.tensor(expected), rtol=1e-3, atol=1e-5
    )
    assert wall_difference(flat, flat, walls, scales) == 0


def test_only_walls_are_asked_and_only_where_there_is_enough_of_them() -> None:
    scales = torch.tensor([30.0, 3.0])
    output, walls = pictures(1).requires_grad_(True), torch.zeros(2, 16, 16, dtype=torch.bool)
    walls[0, :4], walls[1, 0, :10] = True, True
    wall_difference(output, pictures(2), walls, scales).backward()
    assert output.grad is not None
    assert output.grad[0, :, :4].abs().min() > 0
    assert output.grad[0, :, 4:].abs().max() == 0
    assert output.grad[1].abs().max() == 0
    assert wall_difference(output, pictures(2), torch.zeros_like(walls), scales) == 0


def test_an_even_wall_has_a_finite_gradient() -> None:
    output = torch.zeros(1, 3, 16, 16, requires_grad=True)
    wall_difference(output, pictures(0, 1), torch.ones(1, 16, 16, dtype=torch.bool), torch.ones(2)).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
