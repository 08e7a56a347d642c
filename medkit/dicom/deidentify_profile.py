"""The elements of one DICOM object without the patient: PS3.15 annex E, and what it leaves.

The annex names about 650 elements; the table of them is dicom-anonymizer's. What it does not name
stays by a short list only: retired comments and alternative birth dates are text as well.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from medkit.dicom.deidentify_values import age, each, fit, moved, says, texts, words_of
from medkit.dicom.header import TAGS
from medkit.record.pseudonym import pseudonym

__all__ = ["CODES", "TABLE", "Profile"]

TABLE = "2026c"  # edition of the standard
CODES = {  # CID 7050
    "113100": "Basic Application Confidentiality Profile",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
}
MIN_KEY = 16
MOST_DAYS = 3650  # that dates are moved back
_IMPLEMENTATION = "2.25.221580926411263549317270459362853150761"
_CLASS = re.compile(r"[0-9.]{1,64}")
_GRAPHICS = frozenset({0x5000, 0x6000})  # curves and overlays, 50xx and 60xx
_CHARACTERISTICS = {"PatientAge", "PatientSex", "PatientSize", "PatientWeight"}
_CLASSES = {"SOPClassUID", "ReferencedSOPClassUID"}
_TEXT = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
_BINARY = {"OB", "OW", "OF", "OD", "OL", "OV"}
_KEPT_TEXT = {
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "ConvolutionKernel"),
    *("FilterType", "ImageFilter", "SequenceName", "PulseSequenceName", "ImagedNucleus"),
    *("RescaleType", "ModalityLUTType", "AttenuationCorrectionMethod", "ReconstructionMethod"),
    *("ScatterCorrectionMethod", "Radiopharmaceutical", "StackID", "SpecificCharacterSet"),
    *("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning"),
}
_KEPT_BINARY = re.compile(r"\w*PixelData|LUTData|(Segmented)?\w+PaletteColorLookupTableData"
                          r"|ExtendedOffsetTable(Lengths)?")  # fmt: skip


class Profile:
    """What one key makes of data sets: the same over files and runs.

    Args:
        key: Whoever has it can tell which pseudonym is whose.

    Raises:
        ModuleNotFoundError: Without the extra ``medkit[deidentify]``.
        ValueError: For a key that can be guessed.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY:
            raise ValueError(
                f"the key must have at least {MIN_KEY} bytes, got {len(key)}. Whoever guesses it "
                "can undo the pseudonyms: pass secrets.token_bytes(32), and keep it."
            )
        self.key = key
        self.actions = _table()

    def patient(self, identity: str) -> str:
        """Return the pseudonym; the same as tables of the kit have for this id."""
        return pseudonym(identity, key=self.key)

    def uid(self, uid: str) -> str:
        """Return the UID that stands for another; those of the standard itself stay."""
        from pydicom.config import IGNORE
        from pydicom.uid import UID

        uid = uid.strip(" \0")
        if not uid or UID(uid, IGNORE).name != uid:  # a warning would say the value
            return uid
        return f"2.25.{uuid.UUID(bytes=self._mac('uid', uid)[:16], version=4).int}"

    def days(self, identity: str) -> int:
        """Return by how many days all dates of a patient are moved back, 1 to ``MOST_DAYS``."""
        return 1 + int.from_bytes(self._mac("days", identity)[:8], "big") % MOST_DAYS

    def apply(self, dataset: Any) -> str:
        """Take the patient out of a data set, in place; return the patient's pseudonym.

        Raises:
            ValueError: For a number that voxels depend on and that is none.
        """
        from pydicom.sequence import Sequence

        identity = str(dataset.get("PatientID", "") or "").strip(" \0")
        identity = identity or f"study {dataset.get('StudyInstanceUID', '')}"
        self._clean(dataset, self.days(identity), words_of(dataset))
        dataset.PatientID = dataset.PatientName = name = self.patient(identity)
        dataset.PatientIdentityRemoved = "YES"
        dataset.LongitudinalTemporalInformationModified = "MODIFIED"
        dataset.DeidentificationMethod = f"medkit: PS3.15 annex E of {TABLE}"
        dataset.DeidentificationMethodCodeSequence = Sequence([_code(code) for code in CODES])
        return name

    def meta(self, dataset: Any) -> Any:
        """Return new file meta information: without titles, senders and private parts."""
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import UID

        implicit, little = dataset.original_encoding
        syntax = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
        meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
        meta.TransferSyntaxUID = UID(getattr(dataset.file_meta, "TransferSyntaxUID", "") or syntax)
        meta.ImplementationClassUID = UID(_IMPLEMENTATION)
        meta.ImplementationVersionName = "MEDKIT"
        return meta

    def _mac(self, purpose: str, value: str) -> bytes:
        return hmac.digest(self.key, f"medkit {purpose}\0{value}".encode(), hashlib.sha256)

    def _clean(self, dataset: Any, days: int, words: frozenset[str]) -> None:
        for tag in list(dataset.keys()):
            if tag.is_private or tag.element == 0 or tag.group & 0xFF00 in _GRAPHICS:
                del dataset[tag]
                continue
            try:
                element = dataset[tag]
                stays = self._treated(dataset, element, days, words)
            except Exception as error:  # a value that pydicom can't convert
                _require_not_needed(tag, error)
                stays = False
            if not stays and tag in dataset:
                del dataset[tag]

    def _treated(self, dataset: Any, element: Any, days: int, words: frozenset[str]) -> bool:
        """Change an element as it must be; return whether it stays."""
        name, kind, tag = element.keyword, element.VR, element.tag
        action = self.actions.get((tag.group, tag.element))
        if not name or kind == "UN":
            return False
        if kind == "SQ":
            return self._sequence(element, action, days, words)
        if kind == "UI":
            each(element, _class if name in _CLASSES else self.uid)
            return True
        if kind in ("DA", "DT", "TM"):
            if "Birth" in name:
                element.value = ""
            elif kind == "TM":
                each(element, lambda text: fit("TM", text))
            else:
                each(element, lambda text: moved(text, days, day_only=kind == "DA"))
            return True
        if action is not None and name not in _CHARACTERISTICS:
            action(dataset, (tag.group, tag.element))  # it may not know the kind, and raise
            return tag in dataset
        if kind in _BINARY or " or " in kind:
            return bool(_KEPT_BINARY.fullmatch(name)) or kind == "US or SS"
        if kind in _TEXT:
            return name in _KEPT_TEXT and not says(element, words)
        return self._plain(element, words)

    def _sequence(
        self, element: Any, action: Callable[..., None] | None, days: int, words: frozenset[str]
    ) -> bool:
        """Treat items of references and of what the annex does not name; others go."""
        if action is not None and not action.__name__.endswith("_UID"):
            if action.__name__.startswith("delete"):
                return False
            element.value = []  # it must be there, and may be empty
            return True
        for item in element.value:
            self._clean(item, days, words)
        return True

    def _plain(self, element: Any, words: frozenset[str]) -> bool:
        """Treat codes, numbers and ages, which hold nothing else when they are such."""
        if element.VR == "CS":
            if says(element, words):
                return False
            each(element, lambda text: fit("CS", text))
        elif element.VR == "AS":
            each(element, age)
        elif element.VR in ("DS", "IS"):
            for text in texts(element):
                if text and not fit(element.VR, text):
                    raise ValueError("it must be a decimal number")
        return True


@lru_cache(maxsize=1)
def _table() -> dict[tuple[int, ...], Callable[..., None]]:
    try:
        from dicomanonymizer.simpledicomanonymizer import initialize_actions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "de-identification must have the table of DICOM PS3.15 annex E, and dicom-anonymizer "
            "is not installed. Install it: pip install 'medkit[deidentify]'."
        ) from error
    return dict(initialize_actions(f"dicomfields_{TABLE}"))


def _code(value: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, "DCM"
    item.CodeMeaning = CODES[value]
    return item


def _class(text: str) -> str:
    return text if _CLASS.fullmatch(text) else ""


def _require_not_needed(tag: Any, error: Exception) -> None:
    for name, place in TAGS.items():
        if (tag.group, tag.element) == place:
            raise ValueError(
                f"{name} must be a value of its kind ({type(error).__name__})"
            ) from None
