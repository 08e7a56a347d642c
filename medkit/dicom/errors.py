"""What is said where pixels cannot be trusted."""

from __future__ import annotations

import os

__all__ = ["DicomError"]


class DicomError(ValueError):
    """A file or a series that is not turned into a volume: the voxels would be wrong, or are lost.

    Attributes:
        problem: A word for it, such as "missing_slice"; see :mod:`medkit.dicom.series`.
        paths: The files at fault.
    """

    def __init__(self, problem: str, message: str, *paths: str | os.PathLike[str]) -> None:
        super().__init__(message)
        self.problem = problem
        self.paths = tuple(os.fspath(path) for path in paths)

    def __reduce__(self) -> tuple[type[DicomError], tuple[str, ...]]:
        return type(self), (self.problem, str(self), *self.paths)
