"""What a training in Lightning logs of the network that executes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxprune import attach
from tests.support.small_training import loader, network


@pytest.mark.filterwarnings("ignore")  # Lightning's, of its own parts
def test_lightning_logs_what_executes(tmp_path: Path) -> None:
    import csv

    import lightning
    from lightning.pytorch.loggers import CSVLogger

    from fxprune.trainer.lightning import LogPruning

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network("cucb")

        def training_step(self, batch: Any, index: int) -> Tensor:
            del index
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.SGD(self.net.parameters(), 0.05)
            attach(self.net, optimizer)
            return optimizer

    lit = Lit()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=CSVLogger(tmp_path), callbacks=[LogPruning()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(lit, loader())
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:  # type: ignore[union-attr,arg-type]
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    gated = lit.net
    assert float(rows[-1]["macs"]) == gated.cost.macs(gated.widths)
    assert float(rows[-1]["params"]) == gated.cost.params(gated.widths)
    assert [float(rows[-1][f"width/{i}"]) for i in range(len(gated.widths))] == [*gated.widths]
    assert float(rows[-1]["lr"]) == pytest.approx(0.05)  # Lightning keeps float32
    assert 0 < float(rows[-1]["churn"]) <= 1
    assert float(rows[-1]["loss"]) > 0
