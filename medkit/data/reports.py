"""Conversations about pictures as a DataModule: split by patient, encoded, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from medkit.data import splits
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, patients_of, place_of, read_conversations
from medkit.data.encoded import PACKING, Encoded, padded
from medkit.data.packing import ByLength, PackedBatches, PackPlan, plan_packs
from medkit.data.splits import Split

__all__ = ["ReportDataModule", "ReportDataset"]

_PACKING_LENGTH = 512  # the mask of a row grows with its square: 1,024 are slower


class ReportDataset(Dataset[tuple[Encoded, Encoded | None, int, int]]):
    """Encoded conversations, by row.

    Args:
        conversations: All there are; rows are their places.
        encoder: For the model that is trained.
        sites: Names; a conversation's is its column of that name.
        site: The column.
        pairs: Encode each with its rejected answer too.
        keep_pictures: Keep what the model is given of pictures; else each is read again.

    Raises:
        ValueError: For a conversation that cannot be encoded, or pairs without a rejected answer;
            the line or row is named.
    """

    draws_nothing = True  # the keyed loader then leaves the generators alone

    def __init__(
        self,
        conversations: Sequence[Conversation],
        encoder: ChatEncoder,
        *,
        sites: Sequence[str] = (),
        site: str = "site",
        pairs: bool = False,
        keep_pictures: bool = True,
    ) -> None:
        self.conversations = list(conversations)
        self.encoder, self.pairs, self.keep_pictures = encoder, pairs, keep_pictures
        bare = [n for n, one in enumerate(self.conversations) if one.rejected is None]
        if pairs and bare:
            raise ValueError(
                f"pairs need a rejected_response in each conversation; {len(bare)} of "
                f"{len(self.conversations)} have none, the first is "
                f"{place_of(self.conversations, bare[0])}. Add them, or pass pairs=False."
            )
        place = {name: number for number, name in enumerate(sites)}
        self.site = [place.get(str(c.columns.get(site, "")), -1) for c in self.conversations]
        bar = tqdm(self.conversations, unit="conversation", leave=False, disable=None)
        both = (self._encode(row) for row, _ in enumerate(bar))
        self.encoded = [one if keep_pictures else _without_pictures(*one) for one in both]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> tuple[Encoded, Encoded | None, int, int]:
        """Return a conversation, the same with its rejected answer, its row and its site."""
        both = self.encoded[row] if self.keep_pictures else self._encode(row)
        return *both, row, self.site[row]

    def _encode(self, row: int) -> tuple[Encoded, Encoded | None]:
        one = self.conversations[row]
        try:
            rejected = self.encoder.encode(one, one.rejected) if self.pairs else None
            return self.encoder.encode(one), rejected
        except ValueError as error:  # such as a picture that is none: it knows no line
            raise ValueError(f"{place_of(self.conversations, row)}: {error}") from error


def _without_pictures(chosen: Encoded, rejected: Encoded | None) -> tuple[Encoded, Encoded | None]:
    return replace(chosen, pictures={}), rejected and replace(rejected, pictures={})


class ReportDataModule(pl.LightningDataModule):
    """Yields batches of conversations as a model of Hugging Face's is called with.

    A batch is a dict: ``input_ids``, ``labels`` and ``attention_mask``, int64 ``(B, L)``, the
    pictures' fields, and ``row`` and ``site``, int64 ``(B,)``, as all of the kit's batches have.
    Of pairs it is ``chosen`` and ``rejected``, dicts with the former, and ``row`` and ``site``.

    With ``packing``, which conversations are in a batch is chosen so that they fill rows of
    ``packing_length`` tokens. The batch looks as any other, so what takes single conversations out
    of it still does, and says that it is to be packed, which LitVLM does; :attr:`plan` says what
    that saves, from :meth:`setup` on, and is shown with what is done as a fit begins. Validation
    and test are never packed.

    Args:
        conversations: JSONL (:func:`~medkit.data.conversations.read_conversations`), or what was
            read from elsewhere.
        encoder: For the model that is trained.
        patient: Column of who it is; each conversation is another patient's where it is None.
        site: Column of the hospital.
        test_site: This hospital is tested on; None: a share of patients.
        val_fraction: Share of patients (of the others).
        test_fraction: Share of patients, without ``test_site``.
        split_seed: Another seed, another split.
        batch_size: Conversations a step.
        pairs: Yield each with its rejected answer, for preferences.
        packing: Training batches are packed (True), shuffled as they come (False), of about equal
            lengths ("by_length"), or what the plan advises of the first and the last ("auto").
        packing_length: Tokens of a packed row; None: 512, or what the longest has.
        keep_pictures: Keep what the model is given of pictures in memory: 24 MB of each megapixel
            for Qwen-VL. False: each is read again for each batch, which workers can do.
        num_workers: Processes that make batches.

    Raises:
        ValueError: For conversations without the columns or empty there, or a split that cannot be
            made.
    """

    def __init__(
        self,
        conversations: str | Path | Sequence[Conversation],
        encoder: ChatEncoder,
        *,
        patient: str | None = "patient",
        site: str = "site",
        test_site: str | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        batch_size: int = 32,
        pairs: bool = False,
        packing: bool | str = False,
        packing_length: int | None = None,
        keep_pictures: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if packing not in (True, False, "auto", "by_length") or (packing and pairs):
            raise ValueError(
                'packing must be True, False, "auto" or "by_length", and False for pairs, of which '
                f"both answers are compared; got {packing!r} with pairs={pairs}."
            )
        self.source = conversations
        self.encoder = encoder
        self.patient, self.site, self.test_site = patient, site, test_site
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed, self.batch_size = split_seed, batch_size
        self.pairs = pairs
        self.packing, self.packing_length = packing, packing_length
        self.keep_pictures, self.num_workers = keep_pictures, num_workers
        self.plan: PackPlan | None = None  # of the training conversations, after setup
        self.sites: list[str] = []
        self.split: Split | None = None
        self.dataset: ReportDataset | None = None

    @property
    def conversations(self) -> list[Conversation]:
        """All conversations, by row, after :meth:`setup`."""
        if self.dataset is None:
            raise RuntimeError("conversations are there after dm.setup(); call it first.")
        return self.dataset.conversations

    def setup(self, stage: str | None = None) -> None:
        """Read, split by patient and encode, once."""
        if self.dataset is not None:
            return
        source = self.source
        found = read_conversations(source) if isinstance(source, str | Path) else [*source]
        site = np.array([str(one.columns.get(self.site, "")) for one in found])
        self.sites = sorted(set(site.tolist()) - {""})
        patient = self._patients(found)
        if self.test_site is not None:
            self.split = splits.leave_site_out(
                site,
                patient,
                test_site=self.test_site,
                val_fraction=self.val_fraction,
                split_seed=self.split_seed,
            )
        else:
            self.split = splits.by_patient(
                patient,
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                split_seed=self.split_seed,
                stratum=site,
            )
        self.dataset = ReportDataset(
            found, self.encoder, sites=self.sites, site=self.site, pairs=self.pairs,
            keep_pictures=self.keep_pictures,
        )  # fmt: skip
        if self.packing:
            self.plan = self._planned()

    def rows(self, part: str) -> list[int]:
        """Return the rows of "train", "val" or "test"."""
        if self.split is None:
            self.setup()
        split = cast("Split", self.split)
        return [int(row) for row in split.part(part)]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled or packed batches; those that are not full are left out.

        Raises:
            ValueError: Where not one batch is full: nothing would be trained.
        """
        rows = self.rows("train")
        if not self.packing and len(rows) < self.batch_size:
            raise ValueError(
                f"training rows must fill a batch of batch_size={self.batch_size}, as one that is "
                f"not full is left out; there are {len(rows)} rows. Lower batch_size, or pass more "
                "conversations."
            )
        if not self.packing:
            return self._loader("train", shuffle=True, drop_last=True)
        self.plan = self.plan or self._planned()
        lengths, longest = self._lengths(), self.plan.longest
        packs = self.packing is True or (self.packing == "auto" and self.plan.worth_it)
        rank_zero_info(f"{'packed' if packs else 'sorted by length'}: {self.plan}")
        if packs:
            batches = PackedBatches(lengths, longest=longest, batch_size=self.batch_size)
            return self._loader("train", batches=batches, packing_length=longest)
        return self._loader("train", batches=ByLength(lengths, batch_size=self.batch_size))

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation rows in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test rows in order."""
        return self._loader("test")

    def _loader(
        self,
        part: str,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        batches: Sampler[list[int]] | None = None,
        packing_length: int | None = None,
    ) -> DataLoader[Any]:
        rows = self.rows(part)
        dataset = cast("ReportDataset", self.dataset)
        pad = self.encoder.tokenizer.pad_token_id
        together = partial(_together, pad=pad, packing_length=packing_length)
        some = torch.utils.data.Subset(dataset, rows)
        workers = self.num_workers
        if batches is not None:
            return DataLoader(some, batch_sampler=batches, collate_fn=together, num_workers=workers)
        return DataLoader(
            some, self.batch_size, shuffle=shuffle, drop_last=drop_last, collate_fn=together,
            num_workers=workers,
        )  # fmt: skip

    def _lengths(self) -> list[int]:
        encoded = cast("ReportDataset", self.dataset).encoded
        return [len(encoded[row][0].ids) for row in self.rows("train")]

    def _planned(self) -> PackPlan:
        lengths = self._lengths()
        longest = self.packing_length or max([_PACKING_LENGTH, *lengths])
        return plan_packs(lengths, longest=longest, batch_size=self.batch_size)

    def _patients(self, found: Sequence[Conversation]) -> splits.Texts:
        if self.patient is None:
            return np.array([str(number) for number in range(len(found))])
        remedy = "Name the column by patient=, or pass None where each is another patient's."
        return np.array(patients_of(found, self.patient, remedy=remedy))


def _together(
    samples: Sequence[tuple[Any, ...]], *, pad: int, packing_length: int | None
) -> dict[str, Any]:
    chosen, rejected, row, site = zip(*samples, strict=True)
    whose: dict[str, Any] = {"row": torch.tensor(row), "site": torch.tensor(site)}
    if packing_length is not None:
        whose[PACKING] = packing_length
    if rejected[0] is None:
        return padded(chosen, pad) | whose
    return {"chosen": padded(chosen, pad), "rejected": padded(rejected, pad)} | whose
