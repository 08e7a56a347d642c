"""Things people write that draw from history, where no key reaches. One each; PLANTED lists them.

The line to blame ends in a comment with the name it has in PLANTED.
"""

import collections
import os
import random
import secrets
import time

import numpy as np
import pytorch_lightning as pl
import torch
from monai.data import Dataset as MonaiDataset
from monai.data import ThreadDataLoader, list_data_collate
from monai.transforms import Compose, Lambdad, RandFlipd, RandGaussianNoised
from plain_project import PlainNet
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

N = 32


class Rows(Dataset):
    def __init__(self):
        rng = np.random.RandomState(0)
        self.x = rng.randn(N, 6).astype(np.float32)
        self.y = (self.x[:, 0] > 0).astype(np.float32)

    def __len__(self):
        return N

    def augment(self, x, i):
        return x + np.random.normal(0, 0.01, x.shape).astype(np.float32)

    def __getitem__(self, i):
        return torch.from_numpy(self.augment(self.x[i], i)), torch.tensor(self.y[i])


class Data(pl.LightningDataModule):
    """Loads DATASET."""

    DATASET = Rows

    def setup(self, stage=None):
        self.train = self.DATASET()

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4, shuffle=True)


# ---- augmentation


class FreshGeneratorRows(Rows):
    def augment(self, x, i):
        rng = np.random.default_rng()  # fresh generator
        return x + rng.normal(0, 0.1, x.shape).astype(np.float32)


class FreshGenerator(Data):
    DATASET = FreshGeneratorRows


class CountingRows(Rows):
    def __init__(self):
        super().__init__()
        self.served = 0

    def augment(self, x, i):
        self.served += 1  # counter
        return x[::-1].copy() if self.served % 3 == 0 else x


class Counter(Data):
    DATASET = CountingRows


def secret_sign():
    return 1.0 if secrets.randbelow(2) else -1.0  # secrets


class SecretRows(Rows):
    def augment(self, x, i):
        started = time.perf_counter()
        x = x * secret_sign()
        self.took = time.perf_counter() - started
        return x


class Secrets(Data):
    DATASET = SecretRows


class ClockRows(Rows):
    def augment(self, x, i):
        seed = int(time.time() * 1000) % 2**32  # clock
        return x + np.random.RandomState(seed).normal(0, 0.1, x.shape).astype(np.float32)


class Clock(Data):
    DATASET = ClockRows


class SystemRows(Rows):
    dice = random.SystemRandom()

    def augment(self, x, i):
        if self.dice.random() < 0.5:  # SystemRandom
            x = -x
        return x


class System(Data):
    DATASET = SystemRows


def as_pair(rows):
    batch = list_data_collate(rows)
    return batch["image"][:, 0], batch["y"]


class MonaiLambda(pl.LightningDataModule):
    """A generator made in a lambda in the middle of a Compose."""

    def setup(self, stage=None):
        rng = np.random.RandomState(0)
        rows = [
            {"image": rng.randn(1, 6).astype(np.float32), "y": np.float32(i % 2)} for i in range(N)
        ]
        transform = Compose(
            [
                RandFlipd(keys="image", prob=0.5, spatial_axis=0),
                Lambdad("image", lambda x: x + np.random.RandomState().randn()),  # lambda
                RandGaussianNoised(keys="image", prob=0.5),
            ]
        )
        self.train = MonaiDataset(rows, transform)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4, shuffle=True, collate_fn=as_pair)


class CachingRows(Rows):
    """Keeps the first draw of each row for good: another one after a resume."""

    def __init__(self):
        super().__init__()
        self.cache = {}

    def augment(self, x, i):
        if i not in self.cache:
            self.cache[i] = super().augment(x, i)  # cached draws
        return self.cache[i]


class Caching(Data):
    DATASET = CachingRows


# ---- order


class MoodySampler(Sampler):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        rng = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))  # sampler with entropy
        yield from rng.permutation(self.n).tolist()

    def __len__(self):
        return self.n


class Moody(Data):
    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4, sampler=MoodySampler(N))


class RotatingSampler(Sampler):
    def __init__(self, n):
        self.n, self.start = n, 0

    def __iter__(self):
        self.start += 5  # sampler that goes on
        return iter([(self.start + i) % self.n for i in range(self.n)])

    def __len__(self):
        return self.n


class Rotating(Data):
    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4, sampler=RotatingSampler(N))


# ---- positions


class Stream(IterableDataset):  # IterableDataset
    def __iter__(self):
        rows = list(range(N))
        random.shuffle(rows)
        for i in rows:
            yield torch.full((6,), float(i)), torch.tensor(float(i % 2))


class Streaming(Data):
    DATASET = Stream

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4)


class Threads(Data):
    def train_dataloader(self):
        return ThreadDataLoader(self.train, batch_size=4, num_workers=0)  # ThreadDataLoader


# ---- collate, workers, set-up


def cropping_collate(batch):
    keep = random.Random(os.getpid() + time.time_ns()).randint(3, 6)  # collate
    x, y = torch.utils.data.default_collate(batch)
    x[:, keep:] = 0
    return x, y


class Cropping(Data):
    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4, collate_fn=cropping_collate)


class WorkerRows(Rows):
    def augment(self, x, i):
        info = torch.utils.data.get_worker_info()
        scale = 1.0 if info is None else 1.0 + 0.1 * info.id  # worker number
        return x * scale


class Workers(Data):
    DATASET = WorkerRows


class EarlySplit(Data):
    def __init__(self):
        super().__init__()
        self.chosen = np.random.permutation(N)[:24].tolist()  # early split

    def setup(self, stage=None):
        self.train = torch.utils.data.Subset(Rows(), self.chosen)


# ---- module


class UnkeyedWeights(PlainNet):
    def __init__(self):
        super().__init__()
        start = np.random.default_rng().normal(0, 0.1, (8, 6))  # unkeyed weights
        self.net[0].weight.data = torch.tensor(start, dtype=torch.float32)


class NoisyTransfer(PlainNet):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        rng = torch.Generator()
        rng.seed()  # transfer hook
        return x + 0.1 * torch.randn(x.shape, generator=rng), y


class EntropyStep(PlainNet):
    def training_step(self, batch, batch_idx):
        x, y = batch
        gen = torch.Generator().manual_seed(random.SystemRandom().getrandbits(40))  # step
        mask = (torch.rand(x.shape, generator=gen) > 0.2).float()
        return super().training_step((x * mask, y), batch_idx)


def cosine_scales():
    k = 0
    while True:
        yield 1.0 + 0.5 * np.cos(k)
        k += 1


class PrivateHistory(PlainNet):
    def __init__(self):
        super().__init__()
        self.scales = cosine_scales()
        self.recent = collections.deque(maxlen=5)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.recent.append(loss.item())
        return loss * next(self.scales)  # private history


class HashedNames(PlainNet):
    """The order of a set of strings is another one in each process."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        names = list({"age", "lactate", "sex", "heart", "gcs", "spo2", "sodium"})  # set of strings
        weights = torch.tensor([0.1 * len(name) for name in names[:6]])
        return super().training_step((x * weights, y), batch_idx)


# name -> (module, data, the promise that breaks)
PLANTED = {
    "fresh generator": ("PlainNet", "FreshGenerator", "augmentation"),
    "counter": ("PlainNet", "Counter", "augmentation"),
    "secrets": ("PlainNet", "Secrets", "augmentation"),
    "clock": ("PlainNet", "Clock", "augmentation"),
    "SystemRandom": ("PlainNet", "System", "augmentation"),
    "lambda": ("PlainNet", "MonaiLambda", "augmentation"),
    "sampler with entropy": ("PlainNet", "Moody", "order"),
    "sampler that goes on": ("PlainNet", "Rotating", "order"),
    "IterableDataset": ("PlainNet", "Streaming", "positions"),
    "ThreadDataLoader": ("PlainNet", "Threads", "positions"),
    "collate": ("PlainNet", "Cropping", "collate"),
    "worker number": ("PlainNet", "Workers", "workers"),
    "early split": ("PlainNet", "EarlySplit", "data set-up"),
    "unkeyed weights": ("UnkeyedWeights", "Data", "initial weights"),
    "transfer hook": ("NoisyTransfer", "Data", "batch transfer"),
    "step": ("EntropyStep", "Data", "training step"),
    "private history": ("PrivateHistory", "Data", "training step"),
    "cached draws": ("PlainNet", "Caching", "resume"),
    "set of strings": ("HashedNames", "Data", "repeat"),
}
