"""What each column of a table must be, proposed, written down and applied."""

from medkit.data.contract.schema import Column, Contract

__all__ = ["Column", "Contract"]
