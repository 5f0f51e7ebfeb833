"""Networks written here, each for a kind that no library of the other tables gives; most widths are odd."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from families_base import Family, Input, image, words
from handmade import Attention, EncoderBlock
from torch import Tensor, nn
from torch.nn import functional as F

WORDS = 97
COLUMNS = {"numbers": Input(("batch", 7)), "kinds": Input(("batch", 3), words=11)}
SERIES = {"x": Input(("batch", 5, "time"))}
TEXT = {"tokens": words(WORDS)}
IMAGE = {"x": image(32)}


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Tabular(nn.Module):
    """Numbers and embedded categories side by side into an MLP with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(11, n) for n in (5, 7, 9))
        self.body = nn.Sequential(nn.Linear(28, 37), nn.BatchNorm1d(37), nn.SiLU(), mlp(37, 29, 3))

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        return self.body(torch.cat([numbers, *(t(kinds[:, k]) for k, t in enumerate(self.tables))], 1))


class TabTransformer(nn.Module):
    """Attention over embedded categories, flattened beside the normalized numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.column = nn.Embedding(33, 20), nn.Parameter(torch.randn(3, 20))
        self.block, self.norm, self.head = EncoderBlock(20, 4), nn.LayerNorm(7), mlp(67, 31, 3)

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        x = self.block(self.table(kinds + torch.arange(3) * 11) + self.column)
        return self.head(torch.cat([x.flatten(1), self.norm(numbers)], 1))


class FTTransformer(nn.Module):
    """Every column a token, a class token in front of them (Gorishniy et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(7, 24)), nn.Parameter(torch.randn(7, 24))
        self.table, self.first = nn.Embedding(33, 24), nn.Parameter(torch.randn(1, 1, 24))
        self.blocks, self.head = nn.Sequential(EncoderBlock(24, 3), EncoderBlock(24, 3)), nn.Linear(24, 3)

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        x = torch.cat([numbers[..., None] * self.scale + self.shift, self.table(kinds + torch.arange(3) * 11)], 1)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
        return self.head(F.relu(self.blocks(x)[:, 0]))


class TCN(nn.Module):
    """Dilated causal convolutions: padded on the left, chopped on the right (Bai et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [5, 19, 23, 27]
        self.first = nn.ModuleList(
            nn.Conv1d(i, o, 3, padding=2 * 2**k, dilation=2**k) for k, (i, o) in enumerate(pairwise(widths))
        )
        self.second = nn.ModuleList(nn.Conv1d(o, o, 3, dilation=2**k) for k, o in enumerate(widths[1:]))
        self.short = nn.ModuleList(nn.Conv1d(i, o, 1) for i, o in pairwise(widths))
        self.head = nn.Linear(27, 4)

    def forward(self, x: Tensor) -> Tensor:
        for k, (first, second, short) in enumerate(zip(self.first, self.second, self.short, strict=True)):
            y = F.relu(first(x)[..., : -2 * 2**k])
            x = F.relu(short(x) + F.relu(second(F.pad(y, (2 * 2**k, 0)))))
        return self.head(x[..., -1])


class WaveNet(nn.Module):
    """Gated dilated convolutions with residual and skip sums."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(5, 18, 1)
        self.gates = nn.ModuleList(nn.Conv1d(18, 2 * 18, 3, padding=2**k, dilation=2**k) for k in range(3))
        self.outs = nn.ModuleList(nn.Conv1d(18, 18 + 25, 1) for _ in range(3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(25, 21, 1), nn.ReLU(), nn.Conv1d(21, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.inlet(x), 0
        for gate, out in zip(self.gates, self.outs, strict=True):
            a, b = gate(x).chunk(2, 1)
            rest, skip = out(torch.tanh(a) * torch.sigmoid(b)).split([18, 25], 1)
            x, total = x + rest, total + skip
        return self.head(total)


class ConvTasNet(nn.Module):
    """Learned filterbank, masks for two speakers, overlap-add by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv1d(1, 26, 16, stride=8, bias=False)
        self.norm, self.inlet = nn.GroupNorm(1, 26), nn.Conv1d(26, 17, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(17, 30, 1), nn.PReLU(), nn.GroupNorm(1, 30),
                nn.Conv1d(30, 30, 3, padding=2**k, dilation=2**k, groups=30), nn.PReLU(), nn.GroupNorm(1, 30),
                nn.Conv1d(30, 17, 1),
            )
            for k in range(3)
        )  # fmt: skip
        self.masks, self.decode = nn.Conv1d(17, 52, 1), nn.ConvTranspose1d(26, 1, 16, stride=8, bias=False)

    def forward(self, wave: Tensor) -> Tensor:
        w = F.relu(self.encode(wave))
        x = self.inlet(self.norm(w))
        for block in self.blocks:
            x = x + block(x)
        masked = torch.sigmoid(self.masks(x)).view(wave.shape[0], 2, 26, -1) * w[:, None]
        return self.decode(masked.view(wave.shape[0] * 2, 26, -1)).view(wave.shape[0], 2, -1)


class Conformer(nn.Module):
    """A Conformer block (Gulati et al. 2020): half feed-forwards, attention, gated depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(5, 36)
        self.halves = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(36), nn.Linear(36, 61), nn.SiLU(), nn.Linear(61, 36)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(36) for _ in range(3))
        self.attention, self.expand = Attention(36, 3), nn.Conv1d(36, 72, 1)
        self.deep = nn.Sequential(nn.Conv1d(36, 36, 5, padding=2, groups=36), nn.BatchNorm1d(36), nn.SiLU())
        self.shrink, self.head = nn.Conv1d(36, 36, 1), nn.Linear(36, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x.transpose(1, 2))
        x = x + 0.5 * self.halves[0](x)
        x = x + self.attention(self.norms[0](x))
        y = F.glu(self.expand(self.norms[1](x).transpose(1, 2)), dim=1)
        x = x + self.shrink(self.deep(y)).transpose(1, 2)
        return self.head(self.norms[2](x + 0.5 * self.halves[1](x))).log_softmax(-1)


class CrfTagger(nn.Module):
    """Characters and words through a BiLSTM; emissions and the first Viterbi step with a transition table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cells = nn.Embedding(WORDS, 22), nn.LSTM(22, 27, bidirectional=True, batch_first=True)
        self.tags, self.transitions = nn.Linear(54, 9), nn.Parameter(torch.randn(9, 9))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tags(self.cells(self.table(tokens))[0])
        return x, (x[:, :-1, :, None] + self.transitions).amax(2) + x[:, 1:]


class Seq2Seq(nn.Module):
    """A GRU encodes, a GRU decodes from its last state with dot-product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, 21), nn.Embedding(WORDS, 19)
        self.encode, self.decode = nn.GRU(21, 31, 2, batch_first=True), nn.GRU(19, 31, 2, batch_first=True)
        self.mix, self.head = nn.Linear(62, 31), nn.Linear(31, WORDS)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        memory, state = self.encode(self.source(tokens))
        x, _ = self.decode(self.target(targets), state)
        seen = (x @ memory.transpose(1, 2)).softmax(-1) @ memory
        return self.head(torch.tanh(self.mix(torch.cat([x, seen], -1))))


class ConvLSTM(nn.Module):
    """Three unrolled steps of a convolutional LSTM over frames (N, 3, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(3 + 14, 4 * 14, 3, padding=1), nn.Conv2d(14, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros_like(x[:, 0, :1]).expand(-1, 14, -1, -1)
        for frame in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([frame, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


class GraphConv(nn.Module):
    """Graph convolutions by a dense normalized adjacency matrix that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(11, 33), nn.Linear(33, 27)]), nn.Linear(27, 4)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        a = a.softmax(-1)
        for layer in self.layers:
            x = F.relu(a @ layer(x))
        return self.head(x.mean(1))


class GraphAttention(nn.Module):
    """Additive attention between all nodes, three heads (Velickovic et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.head = nn.Linear(11, 3 * 13, bias=False), nn.Linear(39, 4)
        self.a, self.b = nn.Parameter(torch.randn(3, 13)), nn.Parameter(torch.randn(3, 13))

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        h = self.inlet(x).view(x.shape[0], x.shape[1], 3, 13)
        scores = (h * self.a).sum(-1)[:, :, None] + (h * self.b).sum(-1)[:, None]
        weights = F.leaky_relu(scores.masked_fill(a[..., None] < 0, -9.0)).softmax(2)
        return self.head(F.elu(torch.einsum("nijh,njhc->nihc", weights, h)).flatten(2))


class Mixer(nn.Module):
    """MLP-Mixer: tokens mixed by transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 29, 8, stride=8), nn.Linear(29, 5)
        self.tokens = nn.ModuleList(mlp(16, 23, 16) for _ in range(2))
        self.channels = nn.ModuleList(mlp(29, 43, 29) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(29) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for k in range(2):
            x = x + self.tokens[k](self.norms[2 * k](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[k](self.norms[2 * k + 1](x))
        return self.head(x.mean(1))


class NeRF(nn.Module):
    """Sines and cosines of positions into an MLP with a skip, density and a color that sees the direction."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(27, 41, 41), mlp(41 + 27, 41, 33)
        self.density, self.color = nn.Linear(33, 1), mlp(33 + 3, 25, 3)

    def forward(self, points: Tensor, ways: Tensor) -> Tensor:
        angles = (points[..., None] * 2.0 ** torch.arange(4)).flatten(1)
        x = torch.cat([points, angles.sin(), angles.cos()], 1)
        x = F.relu(self.second(torch.cat([F.relu(self.first(x)), x], 1)))
        return torch.cat([F.softplus(self.density(x)), self.color(torch.cat([x, ways], 1)).sigmoid()], 1)


class SuperResolution(nn.Module):
    """ESPCN with residual dense connections: PixelShuffle twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 15, 5, padding=2)
        self.dense = nn.ModuleList(nn.Conv2d(15 + 7 * k, 7, 3, padding=1) for k in range(3))
        self.join, self.up, self.last = nn.Conv2d(36, 15, 1), nn.Conv2d(15, 4 * 13, 3, padding=1), nn.Conv2d(13, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.inlet(x)
        for layer in self.dense:
            y = torch.cat([y, F.leaky_relu(layer(y), 0.2)], 1)
        y = F.pixel_shuffle(self.up(first + 0.2 * self.join(y)), 2)
        return F.pixel_shuffle(self.last(F.pad(y, (1, 1, 1, 1), mode="reflect")), 2)


class Siamese(nn.Module):
    """One trunk for two images, their difference and cosine compared."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 17, 3, 2), nn.BatchNorm2d(17), nn.ReLU(), nn.Conv2d(17, 23, 3, 2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(23, 31),
        )  # fmt: skip
        self.head = mlp(31, 13, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.trunk(x), self.trunk(y)
        return self.head((a - b).abs()), (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1)


class Experts(nn.Module):
    """Mixture of experts: all computed by batched weights, mixed by their gates."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gate, self.head = nn.Embedding(WORDS, 26), nn.Linear(26, 5), nn.Linear(26, 7)
        self.up, self.down = nn.Parameter(torch.randn(5, 26, 39) / 5), nn.Parameter(torch.randn(5, 39, 26) / 6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        hidden = F.gelu(torch.einsum("ntc,ech->nteh", x, self.up))
        y = torch.einsum("nteh,ehc->ntec", hidden, self.down)
        return self.head(x + (self.gate(x).softmax(-1)[..., None] * y).sum(2))


class VAE(nn.Module):
    """Convolutional autoencoder: mean and logarithm of the variance, decoded from the mean and given noise."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 13, 4, 2, 1), nn.ReLU(), nn.Conv2d(13, 21, 4, 2, 1), nn.ReLU())
        self.mean, self.log_var, self.inlet = nn.Linear(1344, 9), nn.Linear(1344, 9), nn.Linear(9, 1344)
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(21, 13, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(13, 3, 4, 2, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        y = self.encode(x).flatten(1)
        z = self.mean(y) + noise * (0.5 * self.log_var(y)).exp()
        return self.decode(F.relu(self.inlet(z)).view(-1, 21, 8, 8)), z


class AttentionUNet(nn.Module):
    """A U-Net with gates on its skips, a step embedding and attention over pixels in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.step = mlp(16, 20, 24)
        self.down, self.middle = nn.Conv2d(3, 18, 3, padding=1), nn.Conv2d(18, 24, 3, stride=2, padding=1)
        self.norm, self.attention = nn.GroupNorm(6, 24), Attention(24, 3)
        self.gate_x, self.gate_g, self.gate = nn.Conv2d(18, 11, 1), nn.Conv2d(24, 11, 1), nn.Conv2d(11, 1, 1)
        self.up, self.head = nn.Conv2d(42, 19, 3, padding=1), nn.Conv2d(19, 3, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, :1] * torch.exp(-torch.arange(8) / 8 * math.log(100.0))
        skip = F.silu(self.down(x))
        y = self.middle(skip) + self.step(torch.cat([angles.sin(), angles.cos()], 1))[..., None, None]
        tokens = self.norm(y).flatten(2).transpose(1, 2)
        y = y + self.attention(tokens).transpose(1, 2).reshape(y.shape)
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        skip = skip * self.gate(F.relu(self.gate_x(skip) + self.gate_g(y))).sigmoid()
        return self.head(F.silu(self.up(torch.cat([y, skip], 1))))


class PointNet(nn.Module):
    """Points transformed by a predicted matrix, shared MLPs, a maximum, and a label per point."""

    def __init__(self) -> None:
        super().__init__()
        self.guess, self.matrix = nn.Conv1d(3, 21, 1), mlp(21, 15, 9)
        self.first = nn.Sequential(nn.Conv1d(3, 19, 1), nn.BatchNorm1d(19), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(19, 37, 1), nn.BatchNorm1d(37), nn.ReLU())
        self.head = nn.Sequential(nn.Conv1d(56, 23, 1), nn.ReLU(), nn.Conv1d(23, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.guess(x).amax(2)).view(-1, 3, 3) + torch.eye(3)
        points = self.first((x.transpose(1, 2) @ matrix).transpose(1, 2))
        whole = self.second(points).max(2, keepdim=True)[0].expand(-1, -1, x.shape[2])
        return self.head(torch.cat([points, whole], 1))


class Tacotron(nn.Module):
    """Characters through convolutions and a BiLSTM, a decoder LSTM over frames with attention, a postnet."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 24)
        self.convs = nn.Sequential(nn.Conv1d(24, 22, 5, padding=2), nn.BatchNorm1d(22), nn.ReLU())
        self.encode = nn.LSTM(22, 15, bidirectional=True, batch_first=True)
        self.prenet, self.decode = mlp(20, 18, 18), nn.LSTM(18, 26, batch_first=True)
        self.query, self.key, self.score = nn.Linear(26, 14), nn.Linear(30, 14, bias=False), nn.Linear(14, 1)
        self.frames = nn.Linear(56, 20)
        self.post = nn.Sequential(
            nn.Conv1d(20, 17, 5, padding=2), nn.BatchNorm1d(17), nn.Tanh(), nn.Conv1d(17, 20, 5, padding=2)
        )

    def forward(self, tokens: Tensor, frames: Tensor) -> Tensor:
        memory, _ = self.encode(self.convs(self.table(tokens).transpose(1, 2)).transpose(1, 2))
        x, _ = self.decode(F.relu(self.prenet(frames)))
        scores = self.score(torch.tanh(self.query(x)[:, :, None] + self.key(memory)[:, None])).squeeze(-1)
        y = self.frames(torch.cat([x, scores.softmax(-1) @ memory], -1)).transpose(1, 2)
        return y + self.post(y)


class TextCNN(nn.Module):
    """Convolutions of three widths over embeddings, maxima over time side by side (Kim 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, 23), nn.Linear(45, 4)
        self.convs = nn.ModuleList(nn.Conv1d(23, n, k) for n, k in ((13, 2), (15, 3), (17, 4)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).transpose(1, 2)
        return self.head(torch.cat([F.relu(conv(x)).amax(2) for conv in self.convs], 1))


class CRNN(nn.Module):
    """Text recognition: a CNN, columns as steps of a BiLSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 15, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(15, 21, 3, padding=1),
            nn.BatchNorm2d(21), nn.ReLU(), nn.MaxPool2d((2, 1)),
        )  # fmt: skip
        self.cells, self.head = nn.LSTM(21 * 8, 25, bidirectional=True, batch_first=True), nn.Linear(50, 17)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x)
        return self.head(self.cells(y.permute(0, 3, 1, 2).flatten(2))[0])


class UNet3D(nn.Module):
    """A volume U-Net with InstanceNorm and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 9, 3, padding=1), nn.InstanceNorm3d(9, affine=True), nn.LeakyReLU())
        self.middle = nn.Sequential(nn.Conv3d(9, 15, 3, 2, 1), nn.InstanceNorm3d(15, affine=True), nn.LeakyReLU())
        self.up, self.join, self.head = (
            nn.ConvTranspose3d(15, 9, 2, 2),
            nn.Conv3d(18, 11, 3, padding=1),
            nn.Conv3d(11, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(F.relu(self.join(torch.cat([skip, self.up(self.middle(skip))], 1))))


class StyleTransfer(nn.Module):
    """Johnson et al. 2016 with adaptive instance normalization from a style vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 17, 9), nn.Conv2d(17, 17, 3, padding=1)
        self.style, self.head = mlp(11, 19, 34), nn.Conv2d(17, 3, 9, padding=4)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        y = F.relu(self.first(F.pad(x, (4, 4, 4, 4), mode="reflect")))
        gamma, beta = self.style(style)[..., None, None].chunk(2, 1)
        y = y + F.relu(F.instance_norm(self.second(y)) * (1 + gamma) + beta)
        return self.head(y).tanh()


class Recommender(nn.Module):
    """DLRM: embeddings, their pairwise products' upper triangle, an MLP (Naumov et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(11, 14) for _ in range(3))
        self.bottom, self.top = mlp(7, 23, 14), mlp(14 + 6, 27, 1)

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        x = torch.stack([dense, *(t(kinds[:, k]) for k, t in enumerate(self.tables))], 1)
        products = (x @ x.transpose(1, 2)).flatten(1)[:, [1, 2, 3, 6, 7, 11]]
        return self.top(torch.cat([dense, products], 1)).sigmoid()


class TwoTower(nn.Module):
    """Users and items to unit vectors; a score for every pair."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = mlp(7, 29, 19), nn.Sequential(nn.Embedding(11, 15), nn.Flatten(), mlp(45, 25, 19))

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        return F.normalize(self.user(numbers), dim=-1) @ F.normalize(self.item(kinds), dim=-1).T


class ActorCritic(nn.Module):
    """A policy and a dueling value on one trunk of pixels and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(nn.Conv2d(3, 13, 8, 4), nn.ELU(), nn.Conv2d(13, 19, 4, 1), nn.ELU(), nn.Flatten())
        self.body, self.policy, self.value, self.gain = (
            mlp(19 * 16 + 7, 33),
            nn.Linear(33, 5),
            mlp(33, 9, 1),
            nn.Linear(33, 5),
        )

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.body(torch.cat([self.eyes(x), state], 1)))
        gain = self.gain(y)
        return self.policy(y).softmax(-1), self.value(y) + gain - gain.mean(1, keepdim=True)


class LSTMCells(nn.Module):
    """An LSTM step by step from cells with LayerNorm, as exporters see a loop unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm, self.head = nn.LSTMCell(5, 22), nn.LayerNorm(22), nn.Linear(22, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], 22)
        for step in range(4):
            h, c = self.cell(x[..., step], (h, c))
            h = self.norm(h)
        return self.head(h)


class KAN(nn.Module):
    """Radial bases of every input, mixed linearly, beside a linear path (Liu et al. 2024, with Gaussian bases)."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.linspace(-2, 2, 6))
        self.base = nn.ModuleList([nn.Linear(7, 21), nn.Linear(21, 3)])
        self.bumps = nn.ModuleList([nn.Linear(7 * 6, 21), nn.Linear(21 * 6, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for base, bumps in zip(self.base, self.bumps, strict=True):
            x = base(F.silu(x)) + bumps(torch.exp(-((x[..., None] - self.centers) ** 2)).flatten(1))
        return x


class NBeats(nn.Module):
    """Doubly residual stacks: each block explains part of the past and adds to the forecast."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(20, 33, 33, 26) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for block in self.blocks:
            back, ahead = block(x).split([20, 6], 1)
            x, total = x - back, total + ahead
        return total


class Informer(nn.Module):
    """Forecasting: a series split into trend and season, FFT-free, cross attention to learned queries."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.queries = nn.Conv1d(5, 24, 3, padding=1), nn.Parameter(torch.randn(6, 24))
        self.block, self.attention = EncoderBlock(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
        self.season, self.trend = nn.Linear(24, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        trend = F.avg_pool1d(x, 3, 1, 1)
        memory = self.block(self.inlet(x - trend).transpose(1, 2))
        y, _ = self.attention(self.queries.expand(x.shape[0], -1, -1), memory, memory, need_weights=False)
        return self.season(y) + self.trend(trend[..., -1])[:, None]


FRAMES = {"x": Input(("batch", 3, 3, "height", "width"))}
NODES = {"x": Input(("batch", "time", 11)), "a": Input(("batch", "time", "time"))}
KINDS: dict[str, tuple[type[nn.Module], dict[str, Input]]] = {
    "tabular": (Tabular, COLUMNS),
    "tab_transformer": (TabTransformer, COLUMNS),
    "ft_transformer": (FTTransformer, COLUMNS),
    "tcn": (TCN, SERIES),
    "wavenet": (WaveNet, SERIES),
    "conv_tasnet": (ConvTasNet, {"wave": Input(("batch", 1, "samples"))}),
    "conformer": (Conformer, SERIES),
    "crf_tagger": (CrfTagger, TEXT),
    "seq2seq": (Seq2Seq, {**TEXT, "targets": Input(("batch", "target"), words=WORDS)}),
    "conv_lstm": (ConvLSTM, FRAMES),
    "graph_conv": (GraphConv, NODES),
    "graph_attention": (GraphAttention, NODES),
    "mixer": (Mixer, IMAGE),
    "nerf": (NeRF, {"points": Input(("batch", 3)), "ways": Input(("batch", 3))}),
    "super_resolution": (SuperResolution, {"x": Input(("batch", 3, "height", "width"))}),
    "siamese": (Siamese, {"x": image(32), "y": image(32)}),
    "experts": (Experts, TEXT),
    "vae": (VAE, {"x": image(32), "noise": Input(("batch", 9))}),
    "attention_unet": (AttentionUNet, {"x": image(16), "time": Input(("batch", 1))}),
    "pointnet": (PointNet, {"x": Input(("batch", 3, "samples"))}),
    "tacotron": (Tacotron, {**TEXT, "frames": Input(("batch", "target", 20))}),
    "text_cnn": (TextCNN, TEXT),
    "crnn": (CRNN, IMAGE),
    "unet3d": (UNet3D, {"x": Input(("batch", 1, 8, 16, 16))}),
    "style_transfer": (StyleTransfer, {"x": Input(("batch", 3, "height", "width")), "style": Input(("batch", 11))}),
    "recommender": (Recommender, COLUMNS),
    "two_tower": (TwoTower, COLUMNS),
    "actor_critic": (ActorCritic, {"x": image(32), "state": Input(("batch", 7))}),
    "lstm_cells": (LSTMCells, {"x": Input(("batch", 5, 4))}),
    "kan": (KAN, {"x": Input(("batch", 7))}),
    "nbeats": (NBeats, {"x": Input(("batch", 20))}),
    "informer": (Informer, SERIES),
}


def families() -> Iterator[Family]:
    """One family for each kind."""
    for name, (kind, inputs) in KINDS.items():
        yield Family(name, "written here", lambda k=kind, **_: k(), inputs)
