"""A LightningModule whose attributes are set at less cost."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class LeanModule(pl.LightningModule):
    """What the kit's modules are made of.

    Lightning notes in an attribute which hook is running, 29 times a step; torch looks each time
    whether a parameter is being set, 50 us a step.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, that one without a look at parameters and buffers."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)
