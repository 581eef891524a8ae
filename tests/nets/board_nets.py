"""Small nets as people bring them to microcontrollers, and some that a board does not get.

``NETS`` lists all, with the shape of an input. ``refused`` is the operator that the build has to
name; without it the net has to build.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it

#: of all random numbers
SEED = 42


@dataclass(frozen=True)
class Net:
    """One net."""

    name: str
    make: Callable[[], nn.Module]
    #: of an input, without the batch
    shape: tuple[int, ...]
    #: the operator that is refused
    refused: str = ""
    #: whether inputs are from 0 to 1, as pictures; else they are normal
    picture: bool = False

    def module(self) -> nn.Module:
        """The same each time, in evaluation mode, its BatchNorms as if it were trained."""
        torch.manual_seed(SEED)
        made = self.make()
        for part in made.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, 0, 0.3)
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
        return made.eval().requires_grad_(False)

    def inputs(self, count: int = 16) -> torch.Tensor:
        """Samples to calibrate and to compare with: noise that is smooth, and differs in size."""
        random = torch.Generator().manual_seed(SEED)
        noise = torch.randn(count, *self.shape, generator=random)
        noise = noise + 0.7 * noise.roll(1, -1) if self.shape[-1] > 1 else noise
        noise = noise * torch.linspace(0.5, 1.5, count).reshape(-1, *(1 for _ in self.shape))
        return (noise / 6 + 0.5).clamp(0, 1) if self.picture else noise


NETS: dict[str, Net] = {}


def net(
    name: str, *shape: int, refused: str = "", picture: bool = False
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Put the function or class below it, which makes the module, into ``NETS``."""

    def put(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        NETS[name] = Net(name, make, shape, refused, picture)
        return make

    return put


class Function(nn.Module):
    """Layers and what is done with them."""

    def __init__(self, function: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(self, x)


def conv(i: int, o: int, k: int = 3, s: int = 1, act: nn.Module | None = None, **more) -> nn.Module:
    """Convolution, BatchNorm, activation."""
    more.setdefault("padding", k // 2)
    return nn.Sequential(
        nn.Conv2d(i, o, k, s, bias=False, **more), nn.BatchNorm2d(o), act or nn.ReLU()
    )


def conv1(i: int, o: int, k: int = 3, s: int = 1, **more) -> nn.Module:
    """The same over time."""
    more.setdefault("padding", k // 2)
    return nn.Sequential(nn.Conv1d(i, o, k, s, bias=False, **more), nn.BatchNorm1d(o), nn.ReLU())


# ---- without convolutions


@net("mlp", 1, 8, 8)
def _():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@net("sine", 1)
def _():
    return nn.Sequential(
        nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
    )


@net("autoencoder", 64)
def _():
    def layer(i, o):
        return nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())

    return nn.Sequential(layer(64, 32), layer(32, 8), layer(8, 32), nn.Linear(32, 64))


@net("normalised_sensors", 9)
class _Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, 9))
        self.register_buffer("std", torch.linspace(0.5, 2, 9))
        self.body = nn.Sequential(nn.Linear(9, 24), nn.ELU(), nn.Linear(24, 4), nn.Softmax(1))

    def forward(self, x):
        return self.body((x - self.mean) / self.std)


@net("log_softmax_mlp", 20)
def _():
    return nn.Sequential(nn.Linear(20, 16), nn.SELU(), nn.Linear(16, 5), nn.LogSoftmax(dim=1))


@net("face_embedding", 3, 16, 16, picture=True)
def _():
    return Function(
        lambda m, x: F.normalize(m.head(m.body(x).flatten(1)), dim=1),
        body=nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1)),
        head=nn.Linear(16, 12),
    )


@net("policy_and_value", 12)
def _():
    return Function(
        lambda m, x: (torch.softmax(m.policy(m.body(x)), -1), m.value(m.body(x))),
        body=nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()),
        policy=nn.Linear(32, 4),
        value=nn.Linear(32, 1),
    )


@net("q_values_argmax", 8)
def _():
    return Function(
        lambda m, x: m.body(x).argmax(1),
        body=nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 6)),
    )


@net("pre_activation_mlp", 16)
def _():
    return nn.Sequential(
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 24),
        nn.BatchNorm1d(24),
        nn.Mish(),
        nn.Dropout(),
        nn.Linear(24, 3),
    )


@net("variational_encoder", 24)
def _():
    return Function(
        lambda m, x: {"mu": m.mu(m.body(x)), "logvar": m.logvar(m.body(x)) * 4},
        body=nn.Sequential(nn.Linear(24, 32), nn.LeakyReLU(0.1)),
        mu=nn.Linear(32, 4),
        logvar=nn.Linear(32, 4),
    )


@net("flat_picture", 144)
def _():
    return Function(
        lambda m, x: m.head(m.body(x.view(-1, 1, 12, 12)).view(x.size(0), -1)),
        body=nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2)),
        head=nn.Linear(150, 10),
    )


# ---- pictures


@net("lenet5", 1, 28, 28, picture=True)
def _():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )


@net("mnist_example", 1, 20, 20, picture=True)
class _Mnist(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(1024, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = torch.flatten(self.dropout1(F.max_pool2d(x, 2)), 1)
        return F.log_softmax(self.fc2(self.dropout2(F.relu(self.fc1(x)))), dim=1)


@net("vgg", 3, 16, 16, picture=True)
def _():
    return nn.Sequential(
        conv(3, 8),
        conv(8, 8),
        nn.MaxPool2d(2),
        conv(8, 16),
        conv(16, 16),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Residual(nn.Module):
    def __init__(self, i, o, s=1):
        super().__init__()
        self.body = nn.Sequential(conv(i, o, 3, s), nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o))
        self.short = (
            nn.Identity() if s == 1 else nn.Sequential(nn.Conv2d(i, o, 1, s), nn.BatchNorm2d(o))
        )

    def forward(self, x):
        return F.relu(self.body(x) + self.short(x), inplace=True)


@net("resnet", 3, 16, 16, picture=True)
def _():
    return nn.Sequential(
        conv(3, 8),
        Residual(8, 8),
        Residual(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class PreActivation(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 3, 1, 1)

    def forward(self, x):
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())


@net("preact_resnet", 3, 12, 12, picture=True)
def _():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        PreActivation(8),
        PreActivation(8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


@net("mobilenet_v1", 3, 24, 24, picture=True)
def _():
    def separable(i, o, s):
        return nn.Sequential(conv(i, i, 3, s, groups=i), conv(i, o, 1))

    return nn.Sequential(
        conv(3, 8, 3, 2),
        separable(8, 16, 1),
        separable(16, 32, 2),
        separable(32, 32, 1),
        nn.AvgPool2d(6),
        nn.Flatten(),
        nn.Linear(32, 2),
    )


class Inverted(nn.Module):
    def __init__(self, c, e, act):
        super().__init__()
        self.body = nn.Sequential(
            conv(c, e, 1, act=act()),
            conv(e, e, 3, groups=e, act=act()),
            nn.Conv2d(e, c, 1, bias=False),
            nn.BatchNorm2d(c),
        )

    def forward(self, x):
        return x + self.body(x)


@net("mobilenet_v2", 3, 16, 16, picture=True)
def _():
    return nn.Sequential(
        conv(3, 8, 3, 2, act=nn.ReLU6()),
        Inverted(8, 24, nn.ReLU6),
        Inverted(8, 24, nn.ReLU6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, 10),
    )


class Squeeze(nn.Module):
    def __init__(self, c, gate=nn.Hardsigmoid):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(c, c // 2), nn.ReLU(), nn.Linear(c // 2, c), gate())

    def forward(self, x):
        b, c, _, _ = x.shape
        return x * self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1).expand_as(x)


@net("mobilenet_v3", 3, 16, 16, picture=True)
def _():
    return nn.Sequential(
        conv(3, 8, 3, 2, act=nn.Hardswish()),
        Inverted(8, 16, nn.Hardswish),
        Squeeze(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 16),
        nn.Hardswish(),
        nn.Linear(16, 10),
    )


@net("efficientnet", 3, 16, 16, picture=True)
def _():
    return nn.Sequential(
        conv(3, 8, 3, 2, act=nn.SiLU()),
        Inverted(8, 16, nn.SiLU),
        Squeeze(8, nn.Sigmoid),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def shuffled(x, groups):
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleV2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(
            conv(c, c, 1), conv(c, c, 3, groups=c, act=nn.Identity()), conv(c, c, 1)
        )

    def forward(self, x):
        one, two = x.chunk(2, dim=1)
        return shuffled(torch.cat((one, self.body(two)), 1), 2)


@net("shufflenet_v2", 3, 16, 16, picture=True)
def _():
    return nn.Sequential(
        conv(3, 16, 3, 2),
        ShuffleV2(8),
        ShuffleV2(8),
        conv(16, 24, 1),
        Function(lambda m, x: m.fc(x.mean([2, 3])), fc=nn.Linear(24, 10)),
    )


class ShuffleV1(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.first, self.groups = conv(c, c, 1, groups=groups), groups
        self.rest = nn.Sequential(
            conv(c, c, 3, groups=c, act=nn.Identity()),
            conv(c, c, 1, groups=groups, act=nn.Identity()),
        )

    def forward(self, x):
        return F.relu(x + self.rest(F.channel_shuffle(self.first(x), self.groups)))


@net("shufflenet_v1", 3, 16, 16, picture=True)
def _():
    return nn.Sequential(
        conv(3, 12, 3, 2),
        ShuffleV1(12, 3),
        ShuffleV1(12, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


class Fire(nn.Module):
    def __init__(self, i, s, e):
        super().__init__()
        self.squeeze, self.one, self.three = (
            nn.Conv2d(i, s, 1),
            nn.Conv2d(s, e, 1),
            nn.Conv2d(s, e, 3, 1, 1),
        )

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


@net("squeezenet", 3, 21, 21, picture=True)
def _():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(8, 4, 8),
        nn.Dropout(),
        nn.Conv2d(16, 10, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


@net("densenet", 3, 16, 16, picture=True)
class _Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * n), nn.ReLU(), nn.Conv2d(8 + 4 * n, 4, 3, 1, 1))
            for n in range(3)
        )
        self.head = nn.Sequential(
            nn.BatchNorm2d(20), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(20, 10)
        )

    def forward(self, x):
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(torch.cat(found, 1))


@net("inception", 3, 16, 16, picture=True)
def _():
    return Function(
        lambda m, x: m.head(torch.cat([m.a(x), m.b(x), m.c(x), m.d(x)], 1)),
        a=conv(3, 4, 1),
        b=nn.Sequential(conv(3, 4, 1), conv(4, 8, 3)),
        c=nn.Sequential(conv(3, 2, 1), conv(2, 4, 5)),
        d=nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(3, 4, 1)),
        head=nn.Sequential(
            nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(20, 10)
        ),
    )


@net("resnext", 3, 12, 12, picture=True)
def _():
    return nn.Sequential(
        conv(3, 16),
        conv(16, 16, groups=4),
        conv(16, 32, 3, 2, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


@net("unet", 1, 16, 16, picture=True)
class _Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = conv(1, 4), conv(4, 8)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, 2), conv(8, 4)
        self.end = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        return torch.sigmoid(self.end(self.last(torch.cat([one, self.up(two)], 1))))


@net("segmentation_bilinear", 3, 16, 16, picture=True)
def _():
    return Function(
        lambda m, x: F.interpolate(m.body(x), size=x.shape[2:], mode="bilinear"),
        body=nn.Sequential(conv(3, 8, 3, 2), conv(8, 8), nn.Conv2d(8, 3, 1)),
    )


@net("segmentation_argmax", 3, 16, 12, picture=True)
def _():
    return Function(
        lambda m, x: m.body(x).argmax(dim=1),
        body=nn.Sequential(conv(3, 8), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, 2, 1)),
    )


@net("super_resolution", 1, 12, 12, picture=True)
def _():
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2)
    )


@net("generator", 16)
def _():
    return nn.Sequential(
        nn.Linear(16, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Unflatten(1, (8, 4, 4)),
        nn.ConvTranspose2d(8, 4, 4, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 1, 4, 2, 1),
        nn.Tanh(),
    )


@net("conv_autoencoder", 1, 16, 16, picture=True)
def _():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 8, 3, 2, 1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 3, 2, 1, output_padding=1),
        nn.Sigmoid(),
    )


@net("two_scale_detector", 3, 24, 24, picture=True)
class _Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, 8, 3, 2, act=nn.LeakyReLU(0.1)), conv(8, 16, 3, 2, act=nn.LeakyReLU(0.1))
        )
        self.deep = conv(16, 16, 3, 2, act=nn.LeakyReLU(0.1))
        self.large, self.small = nn.Conv2d(16, 6, 1), nn.Conv2d(32, 6, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.deep(x)
        both = torch.cat([F.interpolate(y, scale_factor=2, mode="nearest"), x], 1)
        return [self.large(y), self.small(both)]


@net("detector_dict", 3, 16, 16, picture=True)
def _():
    return Function(
        lambda m, x: {
            "boxes": 30 * m.boxes(m.body(x).flatten(1)),
            "scores": torch.sigmoid(m.scores(m.body(x).flatten(1))),
        },
        body=nn.Sequential(conv(3, 8, 3, 2), conv(8, 8, 3, 2)),
        boxes=nn.Linear(128, 4),
        scores=nn.Linear(128, 3),
    )


@net("pnet", 3, 12, 12, picture=True)
def _():
    return Function(
        lambda m, x: (m.box(m.body(x)), torch.softmax(m.face(m.body(x)).flatten(1), 1)),
        body=nn.Sequential(
            nn.Conv2d(3, 10, 3),
            nn.PReLU(10),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.Conv2d(10, 16, 3),
            nn.PReLU(16, 0.1),
            nn.Conv2d(16, 32, 3),
            nn.PReLU(32),
        ),
        face=nn.Conv2d(32, 2, 1),
        box=nn.Conv2d(32, 4, 1),
    )


@net("tensorflow_padding", 3, 15, 15, picture=True)
def _():
    return nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 4, padding="same"),
        nn.Hardtanh(),
        nn.Flatten(),
        nn.Linear(392, 4),
    )


@net("reflected", 3, 12, 12, picture=True)
def _():
    return nn.Sequential(
        nn.ReflectionPad2d(1),
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.ReplicationPad2d(1),
        nn.Conv2d(8, 3, 3),
        nn.Hardtanh(-2, 2),
    )


@net("normalised_pictures", 3, 16, 16, picture=True)
class _Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.body = nn.Sequential(
            conv(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        )

    def forward(self, x):
        return self.body((x - self.mean) / self.std)


@net("batchnorm_first", 4, 16, 16)
def _():
    return nn.Sequential(
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 3),
        nn.CELU(),
        nn.AvgPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Linear(392, 3),
    )


@net("gated", 4, 12, 12)
def _():
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1),
        nn.GLU(dim=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GLU(dim=1),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


# ---- sequences


@net("activity_conv1d", 6, 64)
def _():
    return nn.Sequential(
        nn.Conv1d(6, 16, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 16, 5, padding="same"),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, 6),
    )


@net("keyword_spotting", 1, 49, 10)
def _():
    return nn.Sequential(
        nn.Conv2d(1, 16, (10, 4), 2, (4, 1)),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        conv(16, 16, groups=16),
        conv(16, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 12),
    )


class Causal(nn.Module):
    def __init__(self, c, dilation):
        super().__init__()
        self.pad, self.conv = 2 * dilation, nn.Conv1d(c, c, 3, dilation=dilation)

    def forward(self, x):
        return x + F.relu(self.conv(F.pad(x, (self.pad, 0))))


@net("tcn", 4, 48)
def _():
    return nn.Sequential(
        nn.Conv1d(4, 8, 1), Causal(8, 1), Causal(8, 2), Causal(8, 4), nn.Conv1d(8, 2, 1)
    )


class Chomp(nn.Module):
    def __init__(self, i, o, dilation):
        super().__init__()
        self.cut = 2 * dilation
        self.conv = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(i, o, 3, padding=self.cut, dilation=dilation)
        )

    def forward(self, x):
        return F.relu(self.conv(x)[:, :, : -self.cut].contiguous())


@net("tcn_weight_norm_last_step", 3, 40)
def _():
    return Function(
        lambda m, x: m.head(m.body(x)[:, :, -1]),
        body=nn.Sequential(Chomp(3, 8, 1), Chomp(8, 8, 2)),
        head=nn.Linear(8, 4),
    )


@net("wavenet", 1, 64)
class _Wavenet(nn.Module):
    def __init__(self):
        super().__init__()
        self.start = nn.Conv1d(1, 8, 1)
        self.filters = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**n) for n in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**n) for n in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 4, 1))

    def forward(self, x):
        x, total = self.start(x), 0
        for n, (f, g, s) in enumerate(zip(self.filters, self.gates, self.skips, strict=True)):
            y = F.pad(x, (2**n, 0))
            y = torch.tanh(f(y)) * torch.sigmoid(g(y))
            total = total + s(y)
            x = x + y
        return self.end(total)


@net("ecg_resnet1d", 1, 128)
class _Ecg(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv1(1, 8, 7, 2), conv1(8, 8), conv1(8, 8)
        self.head = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(32, 5))

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(x + self.b(self.a(x))))


@net("unet1d", 2, 64)
class _Unet1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.mid = conv1(2, 8), conv1(8, 8)
        self.up, self.end = nn.ConvTranspose1d(8, 8, 2, 2), nn.Conv1d(16, 2, 1)

    def forward(self, x):
        one = self.down(x)
        return self.end(torch.cat([one, self.up(self.mid(F.avg_pool1d(one, 2)))], 1))


@net("m5_audio", 1, 800)
def _():
    return nn.Sequential(
        conv1(1, 8, 80, 16, padding=0),
        nn.MaxPool1d(4),
        conv1(8, 16),
        nn.MaxPool1d(2),
        Function(
            lambda m, x: F.log_softmax(m.fc(x.mean(-1, keepdim=True).permute(0, 2, 1)), dim=2),
            fc=nn.Linear(16, 10),
        ),
    )


@net("time_first_cnn", 32, 6)
def _():
    return Function(
        lambda m, x: m.head(m.body(x.transpose(1, 2)).amax(2)),
        body=nn.Sequential(conv1(6, 8), conv1(8, 16, 3, 2)),
        head=nn.Linear(16, 4),
    )


@net("linear_on_time", 20, 6)
def _():
    return Function(
        lambda m, x: m.head(m.body(x).mean(dim=1)),
        body=nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()),
        head=nn.Linear(16, 3),
    )


@net("frame_tagger", 20, 8)
def _():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))


@net("spectrogram_unsqueezed", 32, 16)
def _():
    return Function(
        lambda m, x: m.body(x.unsqueeze(1)),
        body=nn.Sequential(conv(1, 8, 3, 2), conv(8, 8, 3, 2), nn.Flatten(), nn.Linear(256, 8)),
    )


@net("inception_time", 3, 48)
def _():
    def branch(k):
        return nn.Conv1d(8, 4, k, padding="same", bias=False)

    return Function(
        lambda m, x: m.head(
            m.after(
                torch.cat([m.a(m.low(x)), m.b(m.low(x)), m.c(m.low(x)), m.d(m.pool(x))], 1)
            ).mean(2)
        ),
        low=nn.Conv1d(3, 8, 1, bias=False),
        a=branch(3),
        b=branch(8),
        c=branch(16),
        pool=nn.MaxPool1d(3, 1, 1),
        d=nn.Conv1d(3, 4, 1, bias=False),
        after=nn.Sequential(nn.BatchNorm1d(16), nn.ReLU()),
        head=nn.Linear(16, 4),
    )


class Squeeze1d(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv1d(c, c // 2, 1), nn.ReLU(), nn.Conv1d(c // 2, c, 1), nn.Sigmoid()
        )

    def forward(self, x):
        return x * self.fc(x.mean(2, keepdim=True))


@net("separable1d_se", 4, 64)
def _():
    return nn.Sequential(
        conv1(4, 4, 5, groups=4),
        conv1(4, 16, 1),
        Squeeze1d(16),
        conv1(16, 16, 5, 2, groups=16),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


@net("pointnet", 3, 64)
def _():
    return Function(
        lambda m, x: m.head(torch.max(m.body(x), 2)[0]),
        body=nn.Sequential(conv1(3, 16, 1), conv1(16, 32, 1)),
        head=nn.Linear(32, 5),
    )


# ---- refused


@net("layer_norm_mlp", 16, refused="aten.layer_norm")
def _():
    return nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))


@net("gru_keywords", 20, 8, refused="aten.gru")
def _():
    return Function(
        lambda m, x: m.fc(m.gru(x)[0][:, -1]),
        gru=nn.GRU(8, 16, batch_first=True),
        fc=nn.Linear(16, 4),
    )


@net("lstm_forecast", 20, 3, refused="aten.lstm")
def _():
    return Function(
        lambda m, x: m.fc(m.lstm(x)[0][:, -1]),
        lstm=nn.LSTM(3, 16, batch_first=True),
        fc=nn.Linear(16, 1),
    )


@net("attention", 12, 8, refused="aten.")
def _():
    return Function(
        lambda m, x: m.mha(x, x, x)[0].mean(1), mha=nn.MultiheadAttention(8, 2, batch_first=True)
    )


@net("transformer", 12, 8, refused="aten.")
def _():
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False
    )


@net("video_conv3d", 1, 4, 8, 8, refused="aten.conv3d")
def _():
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


@net("group_norm", 4, 8, 8, refused="aten.group_norm")
def _():
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.ReLU())
