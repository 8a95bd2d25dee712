"""Which encoder suits which observation, and how it begins."""

import math
import sys
import types

import pytest
import torch

from fasta2c.config import TrainConfig
from fasta2c.errors import UserError
from fasta2c.models.encoders import Numbers, build_encoder, choose_encoders
from fasta2c.models.images import ImpalaResNet, NatureCNN, SmallCNN
from fasta2c.models.layers import MLP, Tanh
from fasta2c.spaces import Leaf


def leaf(shape, dtype="float32", low=-math.inf, high=math.inf, categorical=False):
    if dtype == "uint8" and high == math.inf:
        low, high = 0, 255
    return Leaf((), shape, dtype, low, high, categorical)


@pytest.mark.parametrize(
    ("observed", "chosen", "features"),
    [
        (leaf((4, 84, 84), "uint8"), "nature-cnn", 512),
        (leaf((84, 84, 3), "uint8"), "nature-cnn", 512),
        (leaf((3, 36, 36)), "nature-cnn", 512),
        (leaf((84, 84), "uint8"), "nature-cnn", 512),
        (leaf((3, 35, 64)), "small-cnn", 8),
        (leaf((7, 7, 3), "uint8", 0, 10), "small-cnn", 8),
        (leaf((2, 12, 12)), "small-cnn", 8),
        (leaf((84, 84)), "flat", 8),
        (leaf((25, 3, 3), "uint8", 0, 25), "flat", 8),
        (leaf((2, 3, 128)), "flat", 8),
        (leaf((4,)), "flat", 8),
        (leaf((10, 5)), "flat", 8),
        (leaf((2, 3, 4, 5)), "flat", 8),
        (leaf(()), "flat", 8),
        (leaf((), "uint8", 0, 15, categorical=True), "flat", 8),
    ],
)
def test_auto_goes_by_shape(observed, chosen, features):
    assert choose_encoders("auto", [observed]) == [chosen]
    encoder = build_encoder([observed], TrainConfig(hidden_sizes=(8,)))
    found = encoder([torch.zeros(2, *observed.shape, dtype=getattr(torch, observed.dtype))])
    assert found.shape == (2, features) and encoder.features == features


@pytest.mark.parametrize(
    ("observed", "values", "numbers"),
    [
        (leaf((2,)), [[-3.5, 1e9]], [[-3.5, 1e9]]),
        (leaf((), "uint8", 0, 2, True), [2], [[0, 0, 1]]),
        (leaf((), "int32", -1, 1, True), [-1], [[1, 0, 0]]),
        (leaf((2,), "int32", -1, 1), [[1, -1]], [[[0, 0, 1], [1, 0, 0]]]),
        (leaf((2,), "uint8", 0, 1), [[1, 0]], [[1, 0]]),
        (leaf((2,), "uint8", 0, 255), [[51, 255]], [[0.2, 1]]),
        (leaf((2,), "int32", -10, 90), [[-10, 40]], [[0, 0.5]]),
        (leaf((2,), "int32", 10**9, 10**9 + 100), [[10**9 + 20, 10**9 + 100]], [[0.2, 1]]),
        (leaf((2,), "int32", -(2**31), 2**31 - 1), [[-(2**31), 2**31 - 1]], [[0, 1]]),
        (leaf((2,), "uint8", 100, 255), [[100, 255]], [[0, 1]]),
        (leaf((), "int32", 0, 3999, True), [3999], [1]),
        (leaf((2,), "int32"), [[0, -100]], [[0, -math.log(101)]]),
        (Leaf((), (2,), "float32", -math.inf, math.inf, huge=True), [[0, 1e6]], [[0, math.log(1e6 + 1)]]),
        (leaf((1,), "uint8", 7, 7), [[7]], [[0]]),
        (leaf((300,), "uint8", 0, 31), [[31] * 300], [[1] * 300]),  # one-hot it would be 9,600 numbers
    ],
)
def test_numbers_are_made_by_the_stated_rule(observed, values, numbers):
    found = Numbers(observed)(torch.tensor(values, dtype=getattr(torch, observed.dtype)))
    if found.dim() == len(observed.shape) + 2:
        assert found.shape[-1] == observed.classes
        found = found.squeeze(0) if observed.shape == () else found
    torch.testing.assert_close(found.view(torch.tensor(numbers).shape), torch.tensor(numbers, dtype=torch.float32))


def test_several_leaves_are_fused():
    """By hand: features of the image, real numbers and a one-hot name side by side, through one layer."""
    leaves = [leaf((40, 40, 3), "uint8"), leaf((2,)), leaf((), "uint8", 0, 3, True)]
    torch.manual_seed(0)
    encoder = build_encoder(leaves, TrainConfig(hidden_sizes=(8,)))
    image = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8)
    side = torch.tensor([[0.5, -1.0, 0, 1, 0, 0], [2.0, 3.0, 0, 0, 0, 1]])
    features = torch.cat([encoder.parts[0].convolutions(image.permute(0, 3, 1, 2)), side], dim=1)
    expected = torch.tanh(features @ encoder.trunk[0].weight.T)
    found = encoder([image, torch.tensor([[0.5, -1.0], [2.0, 3.0]]), torch.tensor([1, 3], dtype=torch.uint8)])
    torch.testing.assert_close(found, expected)


def test_the_kinds_of_a_cell_become_channels():
    """A grid [5, 6, 2] of 3 kinds a cell: 6 channels, those of one number side by side."""
    observed = leaf((5, 6, 2), "uint8", 0, 2)
    encoder = build_encoder([observed], TrainConfig(hidden_sizes=(4,)))
    seen = []
    encoder.parts[0].convolutions.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    grid = torch.randint(0, 3, (7, 5, 6, 2), dtype=torch.uint8)
    encoder([grid])
    assert seen[0].shape == (7, 6, 5, 6)
    for channel in range(2):
        for kind in range(3):
            assert torch.equal(seen[0][:, 3 * channel + kind] == 1, grid[..., channel] == kind)


@pytest.mark.parametrize("name", ["impala", "small-cnn", "nature-cnn"])
def test_an_encoder_asked_for_is_used_for_every_image(name):
    leaves = [leaf((64, 64, 3), "uint8"), leaf((3,))]
    assert choose_encoders(name, leaves) == [name, "flat"]
    assert choose_encoders(name, [leaf((40, 40))]) == [name], "what is no image by its looks"
    assert choose_encoders("mlp", leaves) == ["flat", "flat"]
    assert choose_encoders(name, [leaf((3, 2)), leaf((40, 40))]) == ["flat", name], "what is too small for it"


def test_impala_has_the_published_layers():
    """Fifteen convolutions; 64 x 64 x 3 is halved thrice to 8 x 8 x 32, then 256 features."""
    network = ImpalaResNet((3, 64, 64), scale=1 / 255)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 15
    assert network.projection[0].in_features == 8 * 8 * 32
    assert network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 256)
    assert ImpalaResNet((3, 7, 9))(torch.zeros(2, 3, 7, 9)).shape == (2, 256)


class Own(torch.nn.Module):
    def __init__(self, observation_space):
        super().__init__()
        self.space = observation_space
        self.features = 3

    def forward(self, observations):
        return observations["a"].float() @ torch.ones(2, 3)


class Broken(Own):
    def forward(self, observations):
        return observations["nothing"]


class Narrow(Own):
    def forward(self, observations):
        return observations.new_zeros(len(observations), 2)


class Picky(Own):
    def __init__(self, observation_space, depth):
        super().__init__(observation_space)


class Nameless(torch.nn.Linear):
    def __init__(self, observation_space):
        super().__init__(1, 1)


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setitem(
        sys.modules,
        "their_encoders",
        types.SimpleNamespace(**{c.__name__: c for c in (Own, Nameless, Broken, Narrow, Picky)}),
    )
    return "their_encoders"


def test_a_users_encoder_gets_the_nested_observation(module):
    leaves = [Leaf(("a",), (2,), "float32", -math.inf, math.inf), Leaf(("b", "c"), (), "uint8", 0, 3)]
    encoder = build_encoder(leaves, TrainConfig(encoder=f"{module}:Own"))
    assert encoder.features == 3 and set(encoder.encoder.space) == {"a", "b"}
    found = encoder([torch.ones(4, 2), torch.zeros(4, dtype=torch.uint8)])
    assert torch.equal(found, torch.full((4, 3), 2.0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("their_encoders:Nope", "no 'Nope'"),
        ("failing_encoders:Own", "importing failing_encoders failed: AttributeError: .*no_such_function"),
        (
            "lazy_encoders:Own",
            "importing lazy_encoders:Own failed: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("wanting_encoders:Own", "importing wanting_encoders failed: ModuleNotFoundError: install it first"),
        ("no_such_module:Own", "no module named .no_such_module. can be imported"),
        ("their_encoders:Nameless", "features"),
        ("their_encoders:Broken", "fails on two observations"),
        ("their_encoders:Narrow", r"gives \[2, 2\] for two observations, not \[2, 3\]"),
        ("their_encoders:Picky", "cannot be made: TypeError"),
        ("natur-cnn", "Did you mean nature-cnn"),
        ("their_encoders:", "names nothing"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_told_in_words(module, name, words, tmp_path, monkeypatch):
    (tmp_path / "failing_encoders.py").write_text("import torch\ntorch.no_such_function()\nclass Own: pass\n")
    (tmp_path / "lazy_encoders.py").write_text("def __getattr__(name):\n    import no_such_module\n")
    (tmp_path / "wanting_encoders.py").write_text("raise ModuleNotFoundError('install it first')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=words):
        build_encoder([leaf((2,))], TrainConfig(encoder=name))


def test_nature_cnn_has_the_published_size():
    """1,684,128 parameters on 4 x 84 x 84: 8,224 + 32,832 + 36,928 in the convolutions, 1,606,144 after them."""
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
    last = build_encoder([leaf((84, 90, 3), "uint8")], TrainConfig())
    first = build_encoder([leaf((3, 84, 90), "uint8")], TrainConfig())
    first.load_state_dict(last.state_dict())
    image = torch.randint(0, 256, (2, 84, 90, 3), dtype=torch.uint8)
    torch.testing.assert_close(last([image]), first([image.permute(0, 3, 1, 2).contiguous()]))


def test_weights_are_orthogonal_with_gain_root_two():
    layer = MLP(64, (16,), "tanh")[0]
    torch.testing.assert_close(layer.weight @ layer.weight.T, 2 * torch.eye(16), rtol=1e-4, atol=1e-4)
    assert layer.bias.abs().sum() == 0


def test_an_image_too_small_is_refused_in_words():
    with pytest.raises(UserError, match="36 cells and more a side"):
        build_encoder([leaf((3, 20, 20), "uint8")], TrainConfig(encoder="nature-cnn"))
    with pytest.raises(UserError, match="5 cells and more a side"):
        build_encoder([leaf((3, 4, 20), "uint8")], TrainConfig(encoder="small-cnn"))
    with pytest.raises(UserError, match="needs images"):
        build_encoder([leaf((4,))], TrainConfig(encoder="nature-cnn"))


def test_a_small_cnn_is_two_convolutions():
    network = SmallCNN((2, 7, 8))
    x = torch.randn(3, 2, 7, 8)
    expected = x.double()
    for layer in (network.convolutions[0], network.convolutions[2]):
        expected = torch.relu(torch.nn.functional.conv2d(expected, layer.weight.double(), layer.bias.double()))
    assert network.features == 32 * 3 * 4
    torch.testing.assert_close(network(x).double(), expected.flatten(1), rtol=1e-4, atol=1e-5)


def test_relu_and_tanh_differ():
    x = torch.full((1, 4), 10.0)
    for name, low, high in (("tanh", -1, 1), ("relu", 0, math.inf)):
        torch.manual_seed(0)
        out = MLP(4, (64,), name)(x)
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
