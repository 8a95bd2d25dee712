"""From observations of any kind to features: each leaf brought to numbers, images to features, all of it fused.

How numbers are made of a leaf:

| leaf | becomes |
|---|---|
| real numbers | themselves |
| names (Discrete, MultiDiscrete) of 3 to 512 kinds, if the leaf becomes no more than 8,192 numbers | one-hot |
| whole numbers of 3 to 32 values, as long as again | one-hot |
| other bounded whole numbers (bytes, say), counted from their lower bound | divided by their range |
| unbounded whole numbers x | sign(x) log(1 + abs(x)) |

Shapes: B samples, N kinds, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fasta2c import custom
from fasta2c.config import TrainConfig
from fasta2c.errors import RunError, UserError, is_out_of_memory
from fasta2c.models.images import ImpalaResNet, NatureCNN, SmallCNN
from fasta2c.models.layers import MLP
from fasta2c.spaces import Layout, Leaf, observation_space

# Names of more kinds than this, and numbers of more values, are no longer told apart one by one.
MOST_NAMES, MOST_VALUES, MOST_NUMBERS = 512, 32, 8192
IMAGES = {"nature-cnn": NatureCNN, "impala": ImpalaResNet, "small-cnn": SmallCNN}


class Numbers(nn.Module):
    """One leaf as float32 numbers, by the table above.

    Args:
        leaf: what comes in.
    """

    _values_N: Tensor

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        classes = leaf.classes
        most = MOST_NAMES if leaf.categorical else MOST_VALUES
        self._real = leaf.real
        self.one_hot = classes is not None and 2 < classes <= most and leaf.size * classes <= MOST_NUMBERS
        self._logarithmic = classes is None and not self._real
        self._low = int(leaf.low) if classes else 0
        self.scale = 1 / max(leaf.high - leaf.low, 1.0) if classes and not self.one_hot else 1.0
        self.per_element = classes if self.one_hot and classes else 1
        if self.one_hot:
            self.register_buffer("_values_N", torch.arange(self.per_element) + self._low, persistent=False)

    def forward(self, leaf: Tensor) -> Tensor:
        """A leaf [B, ...] to float32 [B, ...], with a last axis of kinds if one-hot."""
        if self._real:
            return leaf
        if self.one_hot:
            return (leaf.unsqueeze(-1) == self._values_N).to(torch.float32)
        if self._low:  # first, for float32 cannot tell a large number from the next
            leaf = leaf.to(torch.int64) - self._low
        numbers = leaf.to(torch.float32)
        if self._logarithmic:
            return numbers.sign() * numbers.abs().log1p()
        return numbers if self.scale == 1.0 else numbers * self.scale


class _Flat(nn.Module):
    """A leaf as a vector of numbers."""

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self.numbers = Numbers(leaf)
        self.features = leaf.size * self.numbers.per_element

    def forward(self, leaf: Tensor) -> Tensor:
        """A leaf [B, ...] to [B, F]."""
        numbers: Tensor = self.numbers(leaf)
        return numbers.flatten(1) if numbers.dim() > 1 else numbers.unsqueeze(1)


class _Image(nn.Module):
    """A leaf that is an image or a grid, through convolutions; kinds of cells become channels."""

    def __init__(self, leaf: Leaf, name: str) -> None:
        super().__init__()
        numbers = Numbers(leaf)
        # Bytes go to the convolutions as they are: these apply the scale to their weights.
        raw = not numbers.one_hot and leaf.low == 0
        self.numbers = None if raw else numbers
        self._flat = len(leaf.shape) == 2
        self._channels_last = self._flat or channels_last(leaf.shape)
        channels, height, width = channels_first(leaf.shape)
        size = (channels * numbers.per_element, height, width)
        self.convolutions = IMAGES[name](size, scale=numbers.scale if raw else 1.0)
        self.features = self.convolutions.features

    def forward(self, leaf: Tensor) -> Tensor:
        """A leaf [B, ...] to [B, F]."""
        cells = leaf.unsqueeze(-1) if self._flat else leaf
        if self.numbers is not None:
            cells = self.numbers(cells)
            if self.numbers.one_hot:
                # [B, H, W, C, N] lies in memory as convolutions on a CPU want it: brought to [B, C, N, H, W] first, it
                # takes eight times as long (grids of 7 x 7 x 3, eleven kinds: 2.7 us each against 21).
                cells = cells.flatten(3) if self._channels_last else cells.movedim(-1, 2).flatten(1, 2)
        return self.convolutions(cells.permute(0, 3, 1, 2) if self._channels_last else cells)


class FusedEncoder(nn.Module):
    """An encoder for each leaf; what they give, side by side, goes through fully connected layers.

    A single image goes without these: its own encoder ends in one.

    Args:
        leaves: of the observation.
        names: for each leaf "flat" or an encoder of images.
        config: its `hidden_sizes` and `activation`.
    """

    def __init__(self, leaves: Sequence[Leaf], names: Sequence[str], config: TrainConfig) -> None:
        super().__init__()
        parts: list[_Flat | _Image] = [
            _Flat(leaf) if name == "flat" else _Image(leaf, name) for leaf, name in zip(leaves, names, strict=True)
        ]
        self.parts = nn.ModuleList(parts)
        # A vector alone needs no part: where rows are short, each call of a module is felt.
        self._vector = len(leaves) == 1 and len(leaves[0].shape) == 1 and leaves[0].real
        width = sum(part.features for part in parts)
        alone = len(names) == 1 and names[0] in ("nature-cnn", "impala")
        self.trunk = nn.Sequential() if alone else MLP(width, config.hidden_sizes, config.activation)
        self.features = width if alone else (config.hidden_sizes or (width,))[-1]

    def forward(self, leaves: Sequence[Tensor]) -> Tensor:
        """Leaves [B, ...] to features [B, F]."""
        if self._vector:
            return self.trunk(leaves[0])
        parts = [part(leaf) for part, leaf in zip(self.parts, leaves, strict=True)]
        return self.trunk(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))


class _Custom(nn.Module):
    """A user's own encoder, given what it would be given anywhere: a tensor, or a dict of them."""

    features: int

    def __init__(self, name: str, layout: Layout) -> None:
        super().__init__()
        self._name, self._layout = name, layout
        made = custom.load(name, "encoder")
        try:
            built = made(observation_space(layout))
        except custom.RAISED as error:  # the user's constructor can raise anything
            raise UserError(f"encoder: {name} cannot be made: {type(error).__name__}: {error}") from None
        features = getattr(built, "features", None)
        if not (isinstance(built, nn.Module) and isinstance(features, int)):
            raise UserError(
                f"encoder: {name} must be a torch.nn.Module with an int `features`, the width of what it gives."
            )
        self.encoder = built.eval()
        self.features = features
        packed = torch.zeros((2, *layout.shape), dtype=getattr(torch, layout.dtype))
        try:
            with torch.no_grad():
                found = list(built(layout.nest(layout.unpack(packed))).shape)
        except custom.RAISED as error:
            raise UserError(f"encoder: {name} fails on two observations: {type(error).__name__}: {error}") from None
        if found != [2, features]:
            raise UserError(f"encoder: {name} gives {found} for two observations, not [2, {features}].")

    def forward(self, leaves: Sequence[Tensor]) -> Tensor:
        """Leaves [B, ...] to features [B, F]."""
        try:
            return self.encoder(self._layout.nest(leaves))
        except custom.RAISED as error:
            if isinstance(error, Exception) and is_out_of_memory(error):
                raise
            raise RunError(f"encoder: {self._name} raised {custom.told(error)}") from error


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an image of `shape` holds its channels in the last axis: the smaller of the first and the last."""
    return len(shape) == 3 and shape[2] < shape[0]


def channels_first(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of an image of `shape`: (C, H, W), (H, W, C) or (H, W)."""
    channels, height, width = (shape[2], shape[0], shape[1]) if channels_last(shape) else (1, *shape)[-3:]
    return channels, height, width


def choose_encoders(name: str, leaves: Sequence[Leaf]) -> list[str]:
    """For each leaf "flat" or an encoder of images.

    Args:
        name: "auto": nature-cnn for images of 36 pixels and more, small-cnn for grids of 5 cells and more a side that
            have few channels, flat for everything else; "mlp": all flat; or the encoder that all images and grids get.
        leaves: of the observation.

    Raises:
        UserError: an encoder of images where there are none.
    """
    if name == "mlp":
        return ["flat"] * len(leaves)
    chosen = [_by_looks(leaf) for leaf in leaves]
    if name == "auto":
        return chosen
    minimum = IMAGES[name].minimum
    large = [len(leaf.shape) in (2, 3) and min(channels_first(leaf.shape)[1:]) >= minimum for leaf in leaves]
    # What is no image by its looks may be one to whoever asks for it, where nothing else is.
    asked = [fits and looks != "flat" for fits, looks in zip(large, chosen, strict=True)]
    asked = asked if any(asked) else large
    if not any(asked):
        found = "; ".join(map(str, leaves))
        raise UserError(f"encoder: {name} needs images or grids of {minimum} cells and more a side, not {found}.")
    return [name if image else "flat" for image in asked]


def _by_looks(leaf: Leaf) -> str:
    """The encoder that suits the shape of `leaf`."""
    if len(leaf.shape) not in (2, 3):
        return "flat"
    channels, *sides = channels_first(leaf.shape)
    # Of two axes only bytes that can be anything are pixels: tables of features and matrices have two as well.
    if min(sides) >= NatureCNN.minimum and (len(leaf.shape) == 3 or leaf.classes == 256):
        return "nature-cnn"
    return "small-cnn" if len(leaf.shape) == 3 and min(sides) >= SmallCNN.minimum and channels <= 16 else "flat"


def is_convolutional(name: str, leaves: Sequence[Leaf]) -> bool:
    """Whether the encoder `name` looks at images that are worth all cores, and bf16."""
    return ":" not in name and not {"nature-cnn", "impala"}.isdisjoint(choose_encoders(name, leaves))


def build_encoder(leaves: Sequence[Leaf], config: TrainConfig) -> FusedEncoder | _Custom:
    """The encoder that `config` asks for.

    Raises:
        UserError: an encoder of images where there are none or too small ones, or a class of the user's that cannot
            be imported or lacks what it needs.
    """
    if ":" in config.encoder:
        return _Custom(config.encoder, Layout(leaves))
    return FusedEncoder(leaves, choose_encoders(config.encoder, leaves), config)
