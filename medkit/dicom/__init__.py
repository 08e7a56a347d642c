"""Files of pixels: index a folder, read a series so that no voxel is wrong, or be told why not."""

from medkit.dicom.errors import DicomError
from medkit.dicom.reading import read_image, read_volume
from medkit.dicom.series import read_series, read_stacks
from medkit.dicom.volume import Volume

__all__ = ["DicomError", "Volume", "read_image", "read_series", "read_stacks", "read_volume"]
