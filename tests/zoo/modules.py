"""Small modules of every kind that people write around models of others, or by themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


class Second(nn.Module):
    """A model that takes several tensors, as one of a single tensor: its rows are those."""

    def __init__(self, model, *, mask=True):
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, pair):
        ids, mask = pair.unbind(1)
        return self.model(input_ids=ids, attention_mask=mask)


class Pooled(Second):
    """The mean of a text model's last states, where the mask is 1."""

    def forward(self, pair):
        mask = pair[:, 1].unsqueeze(-1).float()
        states = super().forward(pair).last_hidden_state
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


class Generates(nn.Module):
    """Text that goes on."""

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, ids):
        return self.model.generate(ids, do_sample=False, **self.options)


class Keyword(nn.Module):
    """A model whose first argument goes by a name, or needs others beside it."""

    def __init__(self, model, name, **others):
        super().__init__()
        self.model, self.name, self.others = model, name, others

    def forward(self, inputs):
        return self.model(**{self.name: inputs}, **self.others)


class Halves(nn.Module):
    """A model of two pictures, which are halves of the channels."""

    def __init__(self, model, **others):
        super().__init__()
        self.model, self.others = model, others

    def forward(self, pair):
        one, other = pair.chunk(2, 1)
        return self.model(one.contiguous(), other.contiguous(), **self.others)


class Voice(nn.Module):
    """silero-vad, whose state goes on from chunk to chunk."""

    def __init__(self, model, rate=16_000):
        super().__init__()
        self.model, self.rate = model, rate

    def forward(self, chunk):
        return self.model(chunk, self.rate)


class Lengths(nn.Module):
    """A model that wants each row's length, which is what is not padding."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, frames):
        lengths = frames.abs().sum(-1).gt(0).sum(-1).clamp(min=1)
        return self.model(frames, lengths)


class Tagger(nn.Module):
    """Returns what torch's LSTM returns: the states have the batch second."""

    def __init__(self, kind=nn.LSTM, layers=2):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.rnn = kind(16, 24, num_layers=layers, batch_first=True, bidirectional=True)

    def forward(self, ids):
        return self.rnn(self.embed(ids))


class TimeFirst(nn.Module):
    """Has time first within, and so the batch second in its output."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, frames):
        return self.head(self.rnn(frames.transpose(0, 1))[0])


class Sampler(nn.Module):
    """A variational auto-encoder: mean, spread, and a reconstruction from a random code."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(32, 16)
        self.decode = nn.Linear(8, 32)

    def forward(self, x):
        mean, log = self.encode(x).chunk(2, -1)
        code = mean + torch.randn_like(mean) * log.exp()
        return {"mean": mean, "code": code, "picture": self.decode(code)}


@dataclass
class Found:
    """What a detector found."""

    boxes: torch.Tensor
    scores: torch.Tensor
    label: str
    cache: object = None


class Net(nn.Module):
    """Something to compute with: a small convolutional net."""

    def __init__(self, norm=nn.BatchNorm2d, **options):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), norm(16, **options), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)
        )
        self.head = nn.Linear(32, 10)

    def features(self, x):
        return self.body(x).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class Groups(Net):
    """With group normalisation."""

    def __init__(self):
        super().__init__(lambda channels: nn.GroupNorm(4, channels))


class OwnStatistics(Net):
    """Batch normalisation without running statistics: a row's answer depends on the others."""

    def __init__(self):
        super().__init__(track_running_stats=False)


class AsDataclass(Net):
    """Returns a dataclass with tensors and a word."""

    def forward(self, x):
        y = super().forward(x)
        return Found(y[:, :4], y[:, 4:].softmax(-1), "digits")


class AsArray(Net):
    """Returns a numpy array."""

    def forward(self, x):
        return super().forward(x).numpy()


class AsWords(Net):
    """Returns a list of words, one for each task."""

    def forward(self, x):
        order = super().forward(x).argsort(descending=True).tolist()
        return [f"first {row[0]}, then {row[1:]}" for row in order]


class AsLists(Net):
    """Returns a list with one dict a task, of tensors as long as it has found something."""

    def forward(self, x):
        y = super().forward(x)
        return [{"kept": row[row > row.mean()], "top": row.argmax()} for row in y]


class AsNumber(Net):
    """Returns one number for the whole batch: nothing can be told apart."""

    def forward(self, x):
        return super().forward(x).sum()


class WithConstant(Net):
    """Returns a tensor for each task and one that is the same for all."""

    def __init__(self):
        super().__init__()
        self.register_buffer("anchors", torch.arange(12.0).reshape(6, 2))

    def forward(self, x):
        return super().forward(x), self.anchors


class Branch(Net):
    """Does something else where the input is large: a trace would freeze it."""

    def forward(self, x):
        if torch.equal(x, x.clamp(-10, 10)):
            return super().forward(x)
        return super().forward(x.clamp(-10, 10)) * 2


class Solver(nn.Module):
    """Tries one way, and another if that fails."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6))

    def forward(self, x):
        matrix = x @ self.weight
        try:
            return torch.linalg.cholesky(matrix)
        except torch.linalg.LinAlgError:
            return torch.zeros_like(matrix)


class Remembers(Net):
    """Stores its input, and reads it later in the same call."""

    def forward(self, x):
        self.seen = x
        y = self.features(x)
        return self.head(y) + self.seen.mean((1, 2, 3)).unsqueeze(1)


class Counts(Net):
    """Its answer depends on how many it had before."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += len(x)
        return super().forward(x) + self.count


class Average(Net):
    """Subtracts the mean of all that it has seen, kept in a plain dict."""

    def __init__(self):
        super().__init__()
        self.kept = {"sum": 0.0, "count": 0}

    def forward(self, x):
        self.kept["sum"] += float(x.mean())
        self.kept["count"] += 1
        return super().forward(x - self.kept["sum"] / self.kept["count"])


class Spectrum(nn.Module):
    """Complex numbers within and in its output."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(129, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.rfft(x) * self.filter, torch.fft.irfft(torch.fft.rfft(x) * self.filter)


class Windows(nn.Module):
    """Cuts each task into pieces, which it folds into the batch: 4 rows a task."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(16, 6)

    def forward(self, x):
        return self.net(x.reshape(-1, 16))


class InPlace(Net):
    """Writes to its input."""

    def forward(self, x):
        x -= x.mean((1, 2, 3), keepdim=True)
        return super().forward(x)


class Standardised(nn.Module):
    """Standardises over the whole batch."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(24, 6)

    def forward(self, x):
        return self.net((x - x.mean()) / x.std())


class Dropping(nn.Module):
    """Dropout that is always on, as for an estimate of uncertainty."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 64)

    def forward(self, x):
        return nn.functional.dropout(self.net(x), 0.5, training=True)


class Sorted(nn.Module):
    """Orders the batch by length, as for packed sequences, and back."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(40, 16), nn.LSTM(16, 12, batch_first=True)

    def forward(self, ids):
        lengths = ids.gt(0).sum(1).clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        return self.rnn(packed)[1][0][-1]


class Spikes(nn.Module):
    """Layers that spike, whose membranes are kept from call to call."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.spike, self.second = nn.Linear(16, 32), layer, nn.Linear(32, 4)

    def forward(self, x):
        return self.second(self.spike(self.first(x)))


class Numbers(nn.Module):
    """Computes with numpy within, and takes an int beside."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(20, 20)

    def forward(self, x):
        order = np.argsort(x.numpy(), axis=-1)
        return torch.from_numpy(np.take_along_axis(self.net(x).detach().numpy(), order, -1))
