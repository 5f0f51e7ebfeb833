"""Networks written here whose graphs are odd: one for each way in which channels are moved, shared, routed or stored.

Images first, then series, attention, experts, and graphs and other kinds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from families_base import Family, Input, image, words
from families_handmade import mlp
from torch import Tensor, nn
from torch.nn import functional as F

WORDS = 83
IMAGE = {"x": image(16)}
SERIES = {"x": Input(("batch", 6, "time"))}
TEXT = {"tokens": words(WORDS)}
ROWS = {"x": Input(("batch", 12))}


# Images -----------------------------------------------------------------------------------------------------------


class ShuffleUNet(nn.Module):
    """Down by unshuffling pixels, up by shuffling them, a skip between."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inlet = nn.PixelUnshuffle(2), nn.Conv2d(12, 20, 3, padding=1)
        self.middle, self.up = nn.Conv2d(80, 48, 3, padding=1), nn.PixelShuffle(2)
        self.outlet = nn.Conv2d(32, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.inlet(self.down(x)))
        b = self.up(F.relu(self.middle(self.down(a))))
        return self.up(self.outlet(torch.cat([a, b], 1)))


class GroupedTransposed(nn.Module):
    """Grouped, dilated and transposed convolutions, one of them with output_padding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=2, dilation=2),
            nn.GELU(), nn.Conv2d(24, 24, 3, 2, 1, groups=4), nn.ReLU(),
            nn.ConvTranspose2d(24, 18, 3, 2, 1, output_padding=1, groups=2), nn.PReLU(18),
            nn.ConvTranspose2d(18, 18, 3, 1, 1, groups=18), nn.ConvTranspose2d(18, 5, 2, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class ChannelShuffle(nn.Module):
    """Grouped convolutions between which channels are dealt to other groups; half of the channels pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 24, 3, padding=1), nn.Linear(24, 7)
        self.first, self.second = nn.Conv2d(12, 18, 1, groups=3), nn.Conv2d(18, 12, 1, groups=3)
        self.deep, self.shuffle = nn.Conv2d(18, 18, 3, padding=1, groups=18), nn.ChannelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        a, b = y.chunk(2, 1)
        b = self.second(F.relu(self.deep(self.shuffle(F.relu(self.first(b))))))
        y = torch.cat([a, b], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(y).mean((2, 3)))


class Excited(nn.Module):
    """Squeeze and excitation by Linear layers, then over pixels, then by the maximum, in MobileNet blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.deep = nn.Conv2d(3, 14, 3), nn.Conv2d(14, 42, 1), nn.Conv2d(42, 42, 3, groups=42)
        self.squeeze, self.excite, self.outlet = nn.Linear(42, 11), nn.Linear(11, 42), nn.Conv2d(42, 14, 1)
        self.place, self.head = nn.Conv2d(2, 1, 3, padding=1), nn.Linear(28, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.deep(self.wide(x)))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))[:, :, None, None]
        y = x[:, :, 1:-1, 1:-1] + self.outlet(y)
        y = y * self.place(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)).sigmoid()
        return self.head(torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1))


class Swin(nn.Module):
    """Attention in windows that are shifted by rolling, with a bias of relative positions, and patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.merge = nn.Conv2d(3, 24, 2, 2), nn.LayerNorm(24), nn.Linear(96, 40, bias=False)
        self.qkv, self.out, self.table = nn.Linear(24, 72), nn.Linear(24, 24), nn.Parameter(torch.randn(49, 3))
        self.mlp_norm, self.mlp, self.head = nn.LayerNorm(24), mlp(24, 61, 24), nn.Linear(40, 6)
        ys, xs = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        at = torch.stack([ys.flatten(), xs.flatten()])
        way = (at[:, :, None] - at[:, None, :] + 3).permute(1, 2, 0)
        self.register_buffer("index", way[..., 0] * 7 + way[..., 1])

    def block(self, x: Tensor, shift: int) -> Tensor:
        n, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-shift, -shift), (1, 2)) if shift else self.norm(x)
        y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 3, c // 3).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(16, 16, 3).permute(2, 0, 1)
        a = (q @ k.transpose(-2, -1) * (c // 3) ** -0.5 + bias).softmax(-1)
        y = self.out((a @ v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + (torch.roll(y, (shift, shift), (1, 2)) if shift else y)
        return x + self.mlp(self.mlp_norm(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.block(self.patch(x).permute(0, 2, 3, 1), 0), 2)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.merge(x).mean((1, 2)))


class ConvNeXt(nn.Module):
    """Depthwise 7x7, LayerNorm over channels in the last place, global response normalization, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.norm = (
            nn.Conv2d(3, 22, 2, 2),
            nn.Conv2d(22, 22, 7, padding=3, groups=22),
            nn.LayerNorm(22),
        )
        self.up, self.down, self.scale = nn.Linear(22, 71), nn.Linear(71, 22), nn.Parameter(torch.rand(22))
        self.gamma, self.beta = nn.Parameter(torch.randn(71)), nn.Parameter(torch.randn(71))
        self.head_norm, self.head = nn.LayerNorm(22), nn.Linear(22, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(self.up(self.norm(self.deep(x).permute(0, 2, 3, 1))))
        power = y.norm(dim=(1, 2), keepdim=True)
        y = self.gamma * (y * (power / (power.mean(-1, keepdim=True) + 1e-6))) + self.beta + y
        x = x + (self.scale * self.down(y)).permute(0, 3, 1, 2)
        return self.head(self.head_norm(x.mean((2, 3))))


class Sampler(nn.Module):
    """A spatial transformer: features are sampled on a grid that another branch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.place = nn.Conv2d(3, 19, 3, padding=1), nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
        self.theta, self.outlet = nn.Linear(8, 6), nn.Conv2d(19, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(self.place(x).mean((2, 3))).view(-1, 2, 3) * 0.1
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
        points = torch.stack([xs, ys, torch.ones_like(xs)], -1).view(-1, 3)
        grid = (points @ theta.transpose(1, 2)).view(-1, 16, 16, 2)
        return self.outlet(F.relu(F.grid_sample(F.relu(self.trunk(x)), grid, align_corners=False)))


class Deformed(nn.Module):
    """Deformable convolution written out: offsets, bilinear sampling by Gather, then a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.offset = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 18, 3, padding=1)
        self.mix, self.outlet = nn.Conv2d(90, 14, 1), nn.Conv2d(14, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.trunk(x))
        at = self.offset(y).tanh().view(-1, 9, 2, 16, 16).permute(0, 1, 3, 4, 2)
        parts = [F.grid_sample(y, at[:, k], align_corners=False) for k in range(9)]
        return self.outlet(F.relu(self.mix(torch.cat(parts, 1))))


class Detector(nn.Module):
    """Boxes decoded and ranked in the graph: the best of each image by top-k, their features gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 18, 3, 2, 1), nn.SiLU(), nn.Conv2d(18, 26, 3, 2, 1), nn.SiLU())
        self.boxes, self.scores, self.again = nn.Conv2d(26, 4, 1), nn.Conv2d(26, 1, 1), mlp(26, 21, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.trunk(x)
        score, box = self.scores(y).flatten(1).sigmoid(), self.boxes(y).flatten(2).transpose(1, 2)
        best, index = score.topk(5, 1)
        box = torch.gather(box, 1, index[..., None].expand(-1, -1, 4))
        features = torch.gather(y.flatten(2).transpose(1, 2), 1, index[..., None].expand(-1, -1, 26))
        return box.exp(), best, self.again(features).softmax(-1)


class TiedAutoencoder(nn.Module):
    """The decoder reads the encoder's weights transposed, in a Linear layer and in a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, 15, 4, 2, 1), nn.Linear(960, 23)
        self.first, self.last = nn.Parameter(torch.randn(960) / 9), nn.Parameter(torch.randn(3) / 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = F.relu(self.line(F.relu(self.conv(x)).flatten(1)))
        y = F.relu(F.linear(z, self.line.weight.t(), self.first)).view(-1, 15, 8, 8)
        return F.conv_transpose2d(y, self.conv.weight, self.last, stride=2, padding=1), z


class Flow(nn.Module):
    """Affine couplings: half of the channels scale and shift the other, then a permutation and a 1x1 rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(6, 33, 33, 12) for _ in range(3))
        self.register_buffer("order", torch.randperm(12))
        self.turn = nn.Parameter(torch.linalg.qr(torch.randn(12, 12))[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for net in self.nets:
            a, b = x.chunk(2, 1)
            scale, shift = net(a).chunk(2, 1)
            scale = scale.tanh()
            x = torch.cat([a, b * scale.exp() + shift], 1)[:, self.order] @ self.turn
            total = total + scale.sum(1)
        return x, total


class Capsules(nn.Module):
    """Primary capsules vote for classes; three rounds of routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.primary = nn.Conv2d(3, 17, 5, 2), nn.Conv2d(17, 24, 3, 2)
        self.votes = nn.Parameter(torch.randn(24, 5, 4, 6) / 3)

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        power = (x * x).sum(-1, keepdim=True)
        return x * power / ((1 + power) * (power + 1e-6).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        u = self.squash(
            self.primary(F.relu(self.stem(x)))
            .view(x.shape[0], 6, 4, 4)
            .flatten(2)
            .transpose(1, 2)
            .reshape(x.shape[0], 24, 4)
        )
        v = torch.einsum("nid,icde->nice", u, self.votes)
        b = torch.zeros(v.shape[:3])
        for _ in range(3):
            s = self.squash((b.softmax(2)[..., None] * v).sum(1))
            b = b + (v * s[:, None]).sum(-1)
        return s.norm(dim=-1)


class HyperNetwork(nn.Module):
    """A network makes the weights of a layer for each sample; another makes those of a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.weight, self.kernel = mlp(12, 27, 15), nn.Linear(15, 12 * 9), nn.Linear(15, 9 * 3)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.code(x))
        y = F.relu(torch.bmm(x[:, None], self.weight(code).view(-1, 12, 9))[:, 0])
        k = self.kernel(code).view(-1, 9, 3)
        windows = F.pad(y, (1, 1)).unfold(1, 3, 1)
        return self.head((windows * k).sum(-1))


class Kernels(nn.Module):
    """Weighted sums of several kernels, one sum for each sample (dynamic convolution), as one grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bank = nn.Conv2d(3, 12, 3, padding=1), nn.Parameter(torch.randn(4, 18, 12, 3, 3) / 10)
        self.gate, self.head = nn.Linear(12, 4), nn.Conv2d(18, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        gate = self.gate(y.mean((2, 3))).softmax(-1)
        parts = torch.stack([F.conv2d(y, self.bank[k], padding=1) for k in range(4)], 1)
        return self.head(F.relu((gate[:, :, None, None, None] * parts).sum(1)))


class MultiScale(nn.Module):
    """A pyramid: maps of three sizes brought to one by interpolation, summed; a head shared by all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 13, 3, 1, 1), nn.Conv2d(13, 17, 3, 2, 1), nn.Conv2d(17, 23, 3, 2, 1)
        self.sides = nn.ModuleList(nn.Conv2d(i, 16, 1) for i in (13, 17, 23))
        self.head = nn.Sequential(nn.Conv2d(16, 19, 3, padding=1), nn.GroupNorm(1, 19), nn.ReLU(), nn.Conv2d(19, 5, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        c = F.relu(self.c(b))
        c = self.sides[2](c)
        b = self.sides[1](b) + F.interpolate(c, scale_factor=2, mode="nearest")
        a = self.sides[0](a) + F.interpolate(b, size=(16, 16), mode="bilinear", align_corners=False)
        return tuple(self.head(y) for y in (a, b, c))


class Wavelets(nn.Module):
    """Haar wavelets by fixed kernels and slices; strips pooled along either side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.low, self.high = nn.Conv2d(3, 11, 3, padding=1), nn.Conv2d(11, 15, 1), nn.Conv2d(33, 15, 1)
        self.strip, self.head = nn.Conv2d(15, 15, (3, 1), padding=(1, 0)), nn.Conv2d(15, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.stem(x))
        a, b, c, d = y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]
        low, high = (a + b + c + d) / 2, torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], 1) / 2
        y = F.relu(self.low(low) + self.high(high))
        rows, columns = self.strip(y.mean(3, keepdim=True)), self.strip(y.mean(2, keepdim=True).transpose(2, 3))
        return self.head(y * (rows + columns.transpose(2, 3)).sigmoid())


# Series -----------------------------------------------------------------------------------------------------------


class GatedWave(nn.Module):
    """WaveNet layers whose one convolution gives filter and gate (GLU), residual and skip split from one output."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(6, 14, 1)
        self.gates = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(14, 42, 2, dilation=2**k)) for k in range(3)
        )
        self.outs = nn.ModuleList(nn.Conv1d(21, 14 + 18, 1) for _ in range(3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(18, 25, 1), nn.ReLU(), nn.Conv1d(25, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skip = self.inlet(x), torch.zeros(())
        for k, (gate, out) in enumerate(zip(self.gates, self.outs, strict=True)):
            a, b = gate(F.pad(x, (2**k, 0))).chunk(2, 1)
            rest, more = out(a.tanh() * b.sigmoid()).split([14, 18], 1)
            x, skip = x + rest, skip + more
        return self.head(skip)


class Projected(nn.Module):
    """An LSTM whose state is projected; torch's exporter writes none, so cells are written out step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.down, self.head = nn.Linear(6, 76), nn.Linear(11, 76), nn.Linear(19, 11), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :5].transpose(1, 2)
        h, c = x.new_zeros(x.shape[0], 11), x.new_zeros(x.shape[0], 19)
        for t in range(5):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = self.down(o.sigmoid() * c.tanh())
        return self.head(h)


class BiGRU(nn.Module):
    """Two layers in both directions, then attention over time; the last states are read too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gru = nn.Embedding(WORDS, 17), nn.GRU(17, 13, 2, bidirectional=True, batch_first=True)
        self.score, self.head = nn.Linear(26, 1), nn.Linear(52, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        y, h = self.gru(self.table(tokens))
        pooled = (self.score(y).softmax(1) * y).sum(1)
        return self.head(torch.cat([pooled, h[2], h[3]], -1))


class PackedGRU(nn.Module):
    """Sequences of given lengths, packed for a GRU in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gru, self.head = (
            nn.Embedding(WORDS, 15),
            nn.GRU(15, 12, bidirectional=True, batch_first=True),
            nn.Linear(24, 5),
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.table(tokens), mask.sum(1), batch_first=True, enforce_sorted=False
        )
        y, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.head(y)


class ConvGRU(nn.Module):
    """A GRU of convolutions over three frames: gates from the frame and the state side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.new, self.head = (
            nn.Conv2d(16, 26, 3, padding=1),
            nn.Conv2d(16, 13, 3, padding=1),
            nn.Conv2d(13, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 13, x.shape[3], x.shape[4])
        for t in range(3):
            z, r = self.gates(torch.cat([x[:, t], h], 1)).sigmoid().chunk(2, 1)
            h = (1 - z) * h + z * self.new(torch.cat([x[:, t], r * h], 1)).tanh()
        return self.head(h)


class FourierMixer(nn.Module):
    """FNet: real part of a Fourier transform over time, by torch.fft."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.norm, self.mlp, self.head = (
            nn.Linear(6, 20),
            nn.LayerNorm(20),
            mlp(20, 47, 20),
            nn.Linear(20, 4),
        )

    def mixed(self, y: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fft(y, dim=1))[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.inlet(x[..., :12].transpose(1, 2))
        y = self.norm(y + self.mixed(y))
        return self.head(y + self.mlp(y)).mean(1)


class Spectral(FourierMixer):
    """Mixing over time in the frequency domain by fixed matrices, as exporters without FFT have it; a mel filter."""

    def __init__(self) -> None:
        super().__init__()
        t = torch.arange(12)
        self.register_buffer("real", torch.cos(2 * math.pi * t[:, None] * t / 12))
        self.register_buffer("imaginary", torch.sin(2 * math.pi * t[:, None] * t / 12))

    def mixed(self, y: Tensor) -> Tensor:
        return (self.real @ y - self.imaginary @ y.roll(1, 1)) / 12


class StateSpace(nn.Module):
    """Mamba's block written out: convolution over time, selection, a scan in steps, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.up, self.conv = nn.Linear(6, 18), nn.Linear(18, 60), nn.Conv1d(30, 30, 3, padding=2, groups=30)
        self.select, self.step, self.a = nn.Linear(30, 3 + 2 * 8), nn.Linear(3, 30), nn.Parameter(torch.rand(30, 8))
        self.d, self.down, self.head = nn.Parameter(torch.rand(30)), nn.Linear(30, 18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inlet(x[..., :6].transpose(1, 2))
        u, gate = self.up(F.rms_norm(y, (18,))).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :6].transpose(1, 2))
        dt, b, c = self.select(u).split([3, 8, 8], -1)
        dt = F.softplus(self.step(dt))
        h, found = u.new_zeros(u.shape[0], 30, 8), []
        for t in range(6):
            h = h * (-dt[:, t, :, None] * self.a.exp()).exp() + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
            found.append((h * c[:, t, None]).sum(-1))
        return self.head(y + self.down((torch.stack(found, 1) + self.d * u) * F.silu(gate)))


class Quantizer(nn.Module):
    """VQ-VAE: the nearest of a table of codes is looked up between encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv1d(6, 19, 3, padding=1), nn.ReLU(), nn.Conv1d(19, 10, 1))
        self.codes, self.decode = (
            nn.Parameter(torch.randn(32, 10)),
            nn.Sequential(nn.Conv1d(10, 21, 3, padding=1), nn.ReLU(), nn.Conv1d(21, 6, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x).transpose(1, 2)
        far = (z * z).sum(-1, keepdim=True) - 2 * z @ self.codes.t() + (self.codes * self.codes).sum(-1)
        return self.decode(F.embedding(far.argmin(-1), self.codes).transpose(1, 2))


# Attention ----------------------------------------------------------------------------------------------------------


class EinsumAttention(nn.Module):
    """Heads kept apart in the weights (C, H, D), everything by einsum; the output joins them by (H, D, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, 26), nn.Linear(26, 5)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(26, 4, 7) / 5) for _ in range(3))
        self.o, self.bias = nn.Parameter(torch.randn(4, 7, 26) / 5), nn.Parameter(torch.randn(4, 7))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        q, k, v = (torch.einsum("ntc,chd->nhtd", x, w) for w in (self.q, self.k, self.v))
        a = torch.einsum("nhtd,nhsd->nhts", q + self.bias[:, None], k).mul(7**-0.5).softmax(-1)
        return self.head(x + torch.einsum("nhtd,hdc->ntc", torch.einsum("nhts,nhsd->nhtd", a, v), self.o))


class Relative(nn.Module):
    """Attention with T5's bias of relative positions in buckets, computed in the graph; RMSNorm without scale."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bias, self.head = nn.Embedding(WORDS, 30), nn.Embedding(16, 3), nn.Linear(30, 5)
        self.q, self.k, self.v, self.o = (nn.Linear(30, 30, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((30, 67), (30, 67), (67, 30)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        t = torch.arange(tokens.shape[1])
        bias = self.bias((t[None] - t[:, None]).clamp(-8, 7) + 8).permute(2, 0, 1)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        q, k, v = (f(y).unflatten(-1, (3, 10)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))
        y = x / (x.norm(dim=-1, keepdim=True) * 30**-0.5 + 1e-6)
        return self.head(x + self.down(F.gelu(self.gate(y)) * self.up(y)))


def turned(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions written out: halves of the last axis are turned by angles that grow with time."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * base ** (-torch.arange(half) / half)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Llama(nn.Module):
    """Rotary positions, queries in groups that share keys by repeat_interleave, SwiGLU, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm1, self.norm2 = nn.Embedding(WORDS, 32), nn.RMSNorm(32), nn.RMSNorm(32)
        self.q, self.kv, self.o = (
            nn.Linear(32, 32, bias=False),
            nn.Linear(32, 16, bias=False),
            nn.Linear(32, 32, bias=False),
        )
        self.gate_up, self.down = nn.Linear(32, 2 * 45, bias=False), nn.Linear(45, 32, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        y = self.norm1(x)
        q = turned(self.q(y).unflatten(-1, (4, 8)).transpose(1, 2))
        k, v = self.kv(y).unflatten(-1, (2, 1, 8)).unbind(2)
        k, v = (s.transpose(1, 2).repeat_interleave(4, 1) for s in (k, v))
        t = x.shape[1]
        mask = torch.full((t, t), -1e9).triu(1)
        x = x + self.o(
            ((turned(k) @ q.transpose(-1, -2)).transpose(-1, -2) * 8**-0.5 + mask)
            .softmax(-1)
            .matmul(v)
            .transpose(1, 2)
            .flatten(2)
        )
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        x = x + self.down(F.silu(gate) * up)
        return x @ self.table.weight.t()


class Pairs(nn.Module):
    """Rotary positions of neighbours: pairs of the last axis are turned as complex numbers, by stack and flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.head = nn.Embedding(WORDS, 24), nn.Linear(24, 72), nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.table(tokens)).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        angle = torch.arange(tokens.shape[1])[:, None] * 100.0 ** (-torch.arange(4) / 4)

        def turn(x: Tensor) -> Tensor:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

        y = (turn(q) @ turn(k).transpose(-1, -2) * 8**-0.5).softmax(-1) @ v
        return self.head(y.transpose(1, 2).flatten(2))


class LinearAttention(nn.Module):
    """Attention without a softmax over time: features of queries and keys, sums of outer products."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.qkv, self.out, self.head = (
            nn.Linear(6, 24),
            nn.Linear(24, 72),
            nn.Linear(24, 24),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x.transpose(1, 2))
        q, k, v = (t.unflatten(-1, (3, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = q @ (k.transpose(-1, -2) @ v) / ((q * k.sum(2, keepdim=True)).sum(-1, keepdim=True) + 1e-6)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


class Perceiver(nn.Module):
    """Learned queries read the series twice through torch's MultiheadAttention with other key and value widths."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.read = (
            nn.Parameter(torch.randn(5, 24)),
            nn.MultiheadAttention(24, 4, kdim=13, vdim=17, batch_first=True),
        )
        self.keys, self.values, self.norm = nn.Linear(6, 13), nn.Linear(6, 17), nn.LayerNorm(24)
        self.mlp, self.head = mlp(24, 41, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        z = self.queries.expand(x.shape[0], -1, -1)
        for _ in range(2):
            z = z + self.read(self.norm(z), self.keys(x), self.values(x), need_weights=False)[0]
            z = z + self.mlp(z)
        return self.head(z.mean(1))


# Experts ------------------------------------------------------------------------------------------------------------


class DenseExperts(nn.Module):
    """Every expert a stack of Linear layers, all computed, those not chosen weighted by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gate, self.head = nn.Embedding(WORDS, 22), nn.Linear(22, 4), nn.Linear(22, 5)
        self.experts = nn.ModuleList(mlp(22, 37, 22) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        best, index = self.gate(x).softmax(-1).topk(2, -1)
        weights = torch.zeros(*x.shape[:2], 4).scatter(-1, index, best / best.sum(-1, keepdim=True))
        y = sum(weights[..., k : k + 1] * expert(x) for k, expert in enumerate(self.experts))
        return self.head(x + y)


class StackedExperts(DenseExperts):
    """Outputs of all experts stacked, those chosen gathered by their index."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        best, index = self.gate(x).softmax(-1).topk(2, -1)
        y = torch.stack([expert(x) for expert in self.experts], 2)
        chosen = torch.gather(y, 2, index[..., None].expand(-1, -1, -1, 22))
        return self.head(x + (best[..., None] * chosen).sum(2))


class BatchedExperts(nn.Module):
    """Weights (E, in, out) of all experts in one product of batches over the tokens, SwiGLU in one tensor (GPT-OSS)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gate, self.head = nn.Embedding(WORDS, 22), nn.Linear(22, 4), nn.Linear(22, 5)
        self.up, self.up_bias = nn.Parameter(torch.randn(4, 22, 66) / 5), nn.Parameter(torch.randn(4, 66))
        self.down, self.down_bias = nn.Parameter(torch.randn(4, 33, 22) / 6), nn.Parameter(torch.randn(4, 22))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        flat = x.flatten(0, 1)
        best, index = self.gate(flat).topk(2, -1)
        weights = torch.zeros(flat.shape[0], 4).scatter(1, index, best.softmax(-1))
        many = flat.repeat(4, 1).view(4, -1, 22)
        gate, up = (torch.bmm(many, self.up) + self.up_bias[:, None]).chunk(2, -1)
        y = torch.bmm((up + 1) * gate * (gate * 1.702).sigmoid(), self.down) + self.down_bias[:, None]
        y = (y.view(4, *x.shape) * weights.t().reshape(4, *x.shape[:2], 1)).sum(0)
        return self.head(x + y)


class GatheredExperts(nn.Module):
    """Each token gathers the weights (E, out, in) of its experts and multiplies by them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gate, self.head = nn.Embedding(WORDS, 22), nn.Linear(22, 4), nn.Linear(22, 5)
        self.up, self.down = nn.Parameter(torch.randn(4, 35, 22) / 5), nn.Parameter(torch.randn(4, 22, 35) / 6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).flatten(0, 1)
        best, index = self.gate(x).softmax(-1).topk(2, -1)
        hidden = F.relu(torch.einsum("ti,tkoi->tko", x, self.up[index]))
        y = torch.einsum("tko,tkco->tkc", hidden, self.down[index])
        return self.head(x + (best[..., None] * y).sum(1))


class SwitchedExperts(nn.Module):
    """One expert for each token, picked by comparing indices (Where), added to what is shared by all."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gate, self.head = nn.Embedding(WORDS, 22), nn.Linear(22, 3), nn.Linear(22, 5)
        self.experts, self.shared = nn.ModuleList(mlp(22, 31, 22) for _ in range(3)), mlp(22, 19, 22)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        best, index = self.gate(x).softmax(-1).max(-1, keepdim=True)
        y = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            y = torch.where(index == k, expert(x), y)
        return self.head(x + self.shared(x) + best * y)


class ImageExperts(nn.Module):
    """Three convolutional experts for each image, mixed by a gate of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 3), nn.Linear(16, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 21, 1), nn.ReLU(), nn.Conv2d(21, 16, 3, padding=1)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = self.gate(x.mean((2, 3))).softmax(-1)
        y = torch.stack([expert(x) for expert in self.experts], -1) @ gate[:, None, None, :, None]
        return self.head((x + y[..., 0]).mean((2, 3)))


class SparseExperts(nn.Module):
    """Mixtral's loop: the tokens of each expert are found by nonzero, gathered, and added back where they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gate, self.head = nn.Embedding(WORDS, 22), nn.Linear(22, 3), nn.Linear(22, 5)
        self.experts = nn.ModuleList(mlp(22, 31, 22) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).flatten(0, 1)
        best, index = self.gate(x).softmax(-1).topk(2, -1)
        y = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            which, place = torch.where(index == k)
            y = y.index_add(0, which, expert(x[which]) * best[which, place][:, None])
        return self.head(x + y)


# Graphs and others --------------------------------------------------------------------------------------------------


class MessagePassing(nn.Module):
    """Messages along edges: ends gathered, put together, summed at their targets by ScatterAdd; GRU update."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.message, self.update, self.head = (
            nn.Linear(9, 20),
            mlp(40, 33, 24),
            nn.GRUCell(24, 20),
            nn.Linear(20, 4),
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = F.relu(self.inlet(x))
        for _ in range(2):
            m = self.message(torch.cat([h[edges[0]], h[edges[1]]], -1))
            total = torch.zeros(h.shape[0], 24).scatter_add(0, edges[1][:, None].expand(-1, 24), m)
            h = self.update(total, h)
        return self.head(h)


class EdgeAttention(nn.Module):
    """Graph attention over edges: a softmax at each target by index_add, heads kept apart."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.a, self.b, self.head = (
            nn.Linear(9, 24),
            nn.Parameter(torch.randn(3, 8)),
            nn.Parameter(torch.randn(3, 8)),
            nn.Linear(24, 4),
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.inlet(x).view(-1, 3, 8)
        score = F.leaky_relu((h * self.a).sum(-1)[edges[0]] + (h * self.b).sum(-1)[edges[1]], 0.2).exp()
        total = torch.zeros(h.shape[0], 3).index_add(0, edges[1], score)
        share = score / (total[edges[1]] + 1e-6)
        y = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]] * share[..., None])
        return self.head(F.elu(y.flatten(1)))


class Bilinear(nn.Module):
    """Bilinear forms between two sides, low-rank products, and a factorization machine."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.form = nn.Linear(12, 15), nn.Linear(12, 18), nn.Bilinear(15, 18, 7)
        self.factors, self.head = nn.Parameter(torch.randn(12, 9) / 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.form(F.relu(self.left(x)), F.relu(self.right(x)))
        pairs = (x @ self.factors).pow(2) - x.pow(2) @ self.factors.pow(2)
        return self.head(torch.cat([F.relu(y), pairs / 2], 1))


class Bag(nn.Module):
    """Bags of embeddings, summed and weighted, beside a crossed network and a deep one (DLRM and DCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.weights, self.bottom = nn.Embedding(WORDS, 14), nn.Embedding(WORDS, 1), mlp(12, 25, 14)
        self.w, self.b, self.top = nn.Parameter(torch.randn(28)), nn.Parameter(torch.randn(28)), mlp(28 + 1, 23, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        bag = (self.table(tokens) * self.weights(tokens).sigmoid()).sum(1)
        dense = F.relu(self.bottom(x))
        x0 = y = torch.cat([bag, dense], 1)
        for _ in range(2):
            y = x0 * (y @ self.w)[:, None] + self.b + y
        return self.top(torch.cat([y, (bag * dense).sum(1, keepdim=True)], 1))


class Highway(nn.Module):
    """Highway and dense connections, maxout, a gated residual: y = T h + (1 - T) x."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.h, self.t = nn.Linear(12, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.maxout, self.head = nn.Linear(20, 3 * 16), nn.Linear(20 + 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inlet(x))
        t = self.t(x).sigmoid()
        y = t * F.relu(self.h(x)) + (1 - t) * x
        z = self.maxout(y).view(-1, 16, 3).amax(-1)
        return self.head(torch.cat([y, z], 1))


class Prototypes(nn.Module):
    """Distances to learned prototypes, cosines to class vectors, and radial basis functions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.centres, self.classes = (
            mlp(12, 29, 17),
            nn.Parameter(torch.randn(11, 17)),
            nn.Parameter(torch.randn(5, 17)),
        )
        self.head = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.body(x))
        far = (z[:, None] - self.centres).pow(2).sum(-1)
        return self.head((-far / 17).exp()) + F.normalize(z, dim=-1) @ F.normalize(self.classes, dim=-1).t()


class Ode(nn.Module):
    """Four steps of Runge-Kutta by one network that also reads the time; weights standardized in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Parameter(torch.randn(13, 31)), nn.Linear(31, 12), nn.Linear(12, 3)

    def slope(self, t: float, x: Tensor) -> Tensor:
        w = (self.up - self.up.mean(0)) / (self.up.std(0) + 1e-5)
        time = x.new_full((x.shape[0], 1), t)
        return self.down((torch.cat([x, time], 1) @ w / 4).tanh())

    def forward(self, x: Tensor) -> Tensor:
        for k in range(2):
            a = self.slope(k / 2, x)
            b = self.slope(k / 2 + 0.25, x + a / 4)
            x = x + (a + 2 * b) / 6
        return self.head(x)


class Trees(nn.Module):
    """Soft decision trees: paths from products of gates, leaves mixed by them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gates, self.leaves = mlp(12, 23), nn.Linear(23, 7), nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        g = self.gates(F.relu(self.body(x))).sigmoid()
        g = torch.stack([g, 1 - g], -1)
        path = g[:, 0]
        path = (path[..., None] * g[:, 1:3]).flatten(1)
        path = (path[..., None] * g[:, 3:7]).flatten(1)
        return path @ self.leaves


class Branches(nn.Module):
    """Early exits, a router that mixes two ways by a hard decision, outputs of inner features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 21), nn.Linear(21, 25), nn.Linear(21, 25)
        self.exit, self.head, self.route = nn.Linear(21, 4), nn.Linear(25, 4), nn.Linear(21, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = F.relu(self.a(x))
        way = self.route(y) > 0
        z = torch.where(way, F.relu(self.b(y)), self.c(y).tanh())
        return self.exit(y), self.head(z), z[:, :3]


GRAPH = {"x": Input(("samples", 9)), "edges": Input((2, "time"), words=20)}
KINDS: dict[str, tuple[type[nn.Module], dict[str, Input]]] = {
    "odd_shuffle_unet": (ShuffleUNet, IMAGE),
    "odd_grouped_transposed": (GroupedTransposed, IMAGE),
    "odd_channel_shuffle": (ChannelShuffle, IMAGE),
    "odd_excited": (Excited, IMAGE),
    "odd_swin": (Swin, IMAGE),
    "odd_convnext": (ConvNeXt, IMAGE),
    "odd_sampler": (Sampler, IMAGE),
    "odd_deformed": (Deformed, IMAGE),
    "odd_detector": (Detector, IMAGE),
    "odd_tied_autoencoder": (TiedAutoencoder, IMAGE),
    "odd_flow": (Flow, ROWS),
    "odd_capsules": (Capsules, IMAGE),
    "odd_hypernetwork": (HyperNetwork, ROWS),
    "odd_kernels": (Kernels, IMAGE),
    "odd_multi_scale": (MultiScale, IMAGE),
    "odd_wavelets": (Wavelets, IMAGE),
    "odd_gated_wave": (GatedWave, SERIES),
    "odd_projected": (Projected, SERIES),
    "odd_bigru": (BiGRU, TEXT),
    "odd_packed_gru": (PackedGRU, {**TEXT, "mask": words(-1)}),
    "odd_conv_gru": (ConvGRU, {"x": Input(("batch", 3, 3, 16, 16))}),
    "odd_spectral": (Spectral, SERIES),
    "odd_fourier": (FourierMixer, SERIES),
    "odd_state_space": (StateSpace, SERIES),
    "odd_quantizer": (Quantizer, SERIES),
    "odd_einsum_attention": (EinsumAttention, TEXT),
    "odd_relative": (Relative, TEXT),
    "odd_llama": (Llama, TEXT),
    "odd_pairs": (Pairs, TEXT),
    "odd_linear_attention": (LinearAttention, SERIES),
    "odd_perceiver": (Perceiver, SERIES),
    "odd_dense_experts": (DenseExperts, TEXT),
    "odd_stacked_experts": (StackedExperts, TEXT),
    "odd_batched_experts": (BatchedExperts, TEXT),
    "odd_gathered_experts": (GatheredExperts, TEXT),
    "odd_switched_experts": (SwitchedExperts, TEXT),
    "odd_image_experts": (ImageExperts, IMAGE),
    "odd_sparse_experts": (SparseExperts, TEXT),
    "odd_message_passing": (MessagePassing, GRAPH),
    "odd_edge_attention": (EdgeAttention, GRAPH),
    "odd_bilinear": (Bilinear, ROWS),
    "odd_bag": (Bag, {**ROWS, **TEXT}),
    "odd_highway": (Highway, ROWS),
    "odd_prototypes": (Prototypes, ROWS),
    "odd_ode": (Ode, ROWS),
    "odd_trees": (Trees, ROWS),
    "odd_branches": (Branches, ROWS),
}


def families() -> Iterator[Family]:
    """One family for each kind."""
    for name, (kind, inputs) in KINDS.items():
        yield Family(name, "written here", lambda k=kind, **_: k(), inputs)
