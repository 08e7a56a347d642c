"""The bits of a tensor, whatever its layout: to compare them and to digest them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def bits(value: Tensor) -> list[Tensor]:
    """Return what a tensor is made of, on the host, as one-dimensional tensors of bytes.

    One for an ordinary tensor; indices and values for a sparse one.
    """
    value = value.detach()
    if value.layout == torch.sparse_coo:
        parts = [value._indices(), value._values()]
    elif value.layout in _COMPRESSED:
        parts = [getattr(value, name)() for name in _COMPRESSED[value.layout]]
    else:
        parts = [value]
    return [_bytes(part.cpu().resolve_conj()) for part in parts]


def _bytes(part: Tensor) -> Tensor:
    flat = part.contiguous().view(-1)
    if flat.stride(0) != 1:  # one value that was expanded counts as contiguous
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are alike bit for bit (``-0.0`` is not ``0.0``)."""
    if (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return False
    return all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


def memory_of(tensor: Tensor) -> int:
    """Return where in memory a tensor's values are, views at the same place; 0 if nowhere."""
    if is_lazy(tensor) or tensor.layout is not torch.strided:
        return 0
    return tensor.untyped_storage().data_ptr()
