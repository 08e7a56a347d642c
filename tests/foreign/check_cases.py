"""Cases for the tests of the check: a module that fails, a bare DataLoader."""

from plain_project import PlainData, PlainNet


class Fails(PlainNet):
    def training_step(self, batch, batch_idx):
        raise KeyError("there is no such layer")


def loader():
    data = PlainData()
    data.setup()
    return data.train_dataloader()
