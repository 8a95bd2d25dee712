"""Which encoder suits which observation, and how it begins."""

import math

import pytest
import torch

from fasta2c.errors import UserError
from fasta2c.models.encoders import MLP, NatureCNN, Tanh, build_encoder, choose_encoder


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [
        ((4, 84, 84), "nature-cnn"),
        ((84, 84, 3), "nature-cnn"),
        ((3, 36, 36), "nature-cnn"),
        ((3, 35, 64), "mlp"),
        ((7, 7, 3), "mlp"),
        ((4,), "mlp"),
        ((10, 5), "mlp"),
        ((), "mlp"),
    ],
)
def test_auto_goes_by_shape(shape, chosen):
    assert choose_encoder("auto", shape) == chosen
    features = build_encoder("auto", shape, "float32", (8,), "tanh")(torch.zeros(2, *shape))
    assert features.shape == (2, 512 if chosen == "nature-cnn" else 8)


def test_nature_cnn_has_the_published_size():
    """1,684,128 parameters on 4 x 84 x 84: 8,224 + 32,832 + 36,928 in the convolutions, 1,606,144 behind them."""
    assert sum(p.numel() for p in NatureCNN((4, 84, 84), scale=1.0).parameters()) == 1_684_128


def test_bytes_are_scaled_to_one():
    torch.manual_seed(0)
    network = NatureCNN((1, 84, 84), scale=1 / 255)
    unscaled = NatureCNN((1, 84, 84), scale=1.0)
    unscaled.load_state_dict(network.state_dict())
    image = torch.randint(0, 256, (2, 1, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(network(image), unscaled(image.float() / 255))


def test_features_are_those_of_the_published_layers():
    """By hand in float64, whatever the layout in memory that the network chooses."""
    torch.manual_seed(0)
    network = NatureCNN((4, 84, 84), scale=1 / 255)
    images = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    x = images.double() / 255
    for layer, stride in zip(network.convolutions[0:6:2], (4, 2, 1), strict=True):
        x = torch.relu(torch.nn.functional.conv2d(x, layer.weight.double(), layer.bias.double(), stride))
    x = torch.relu(x.flatten(1) @ network.projection[0].weight.double().T + network.projection[0].bias.double())
    torch.testing.assert_close(network(images).double(), x, rtol=1e-4, atol=1e-5)


def test_channels_may_come_last():
    torch.manual_seed(0)
    last = NatureCNN((84, 90, 3), scale=1 / 255)
    first = NatureCNN((3, 84, 90), scale=1 / 255)
    first.load_state_dict(last.state_dict())
    image = torch.randint(0, 256, (2, 84, 90, 3), dtype=torch.uint8)
    torch.testing.assert_close(last(image), first(image.permute(0, 3, 1, 2)))


def test_weights_are_orthogonal_with_gain_root_two():
    layer = MLP((64,), (16,), "tanh", scale=1.0).layers[0]
    torch.testing.assert_close(layer.weight @ layer.weight.T, 2 * torch.eye(16), rtol=1e-4, atol=1e-4)
    assert layer.bias.abs().sum() == 0


def test_an_image_too_small_is_refused_in_words():
    with pytest.raises(UserError, match="36 pixels"):
        build_encoder("nature-cnn", (3, 20, 20), "uint8", (8,), "tanh")
    with pytest.raises(UserError, match="needs images"):
        build_encoder("nature-cnn", (4,), "float32", (8,), "tanh")


def test_relu_and_tanh_differ():
    x = torch.full((1, 4), 10.0)
    for name, low, high in (("tanh", -1, 1), ("relu", 0, math.inf)):
        torch.manual_seed(0)
        out = MLP((4,), (64,), name, scale=1.0)(x)
        assert out.min() >= low and out.max() <= high


@pytest.mark.parametrize("size", [Tanh.LONG - 1, Tanh.LONG])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tanh_and_its_derivative_are_torchs(size, dtype):
    x = torch.linspace(-12, 12, size).to(dtype).requires_grad_()
    wanted = torch.tanh(x.detach().double())
    found = Tanh()(x)
    found.sum().backward()
    tolerance = 2e-7 if dtype is torch.float32 else 4e-3
    torch.testing.assert_close(found.detach().double(), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(x.grad.double(), 1 - wanted**2, rtol=0, atol=2 * tolerance)
    with torch.no_grad():
        assert torch.equal(Tanh()(x), found), "the same without a gradient, bit for bit"
    assert torch.isfinite(Tanh()(torch.full((size,), 1e30))).all()
