"""Cases for the tests of the check: a module that fails, one that steps by hand, a DataLoader."""

from plain_project import PlainData, PlainNet


class Fails(PlainNet):
    def training_step(self, batch, batch_idx):
        raise KeyError("there is no such layer")


class Manual(PlainNet):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


def loader():
    data = PlainData()
    data.setup()
    return data.train_dataloader()
