"""A callback for Lightning that logs what a gated network in a LightningModule executes."""

from typing import Any

import lightning

from fxprune.gated.module import GatedModule
from fxprune.trainer.churn import Churn


class LogPruning(lightning.Callback):  # type: ignore[misc]  # see pyproject.toml
    """Log macs, params, widths, churn and learning rates beside a LightningModule's own metrics.

    At the end of each training epoch, by the names `macs`, `params`, `churn`, `width/GROUP` and
    `lr`, with a name in front where a LightningModule has several gated networks. `self.log` of
    the module has the metrics, and goes to the same logger.
    """

    def __init__(self) -> None:
        """Begin without a network; `on_train_epoch_start` finds it."""
        self._churns: dict[str, Churn] = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the gated networks, and begin to count what each step exchanges."""
        del trainer
        self._churns = {name: Churn(gated) for name, gated in _gated(pl_module).items()}

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what the step exchanged."""
        del trainer, pl_module, outputs, batch, batch_idx
        for churn in self._churns.values():
            churn.step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the figures of the epoch's last step, and its mean churn."""
        for name, gated in _gated(pl_module).items():
            front = f"{name}/" if len(self._churns) > 1 else ""
            figures = {
                "macs": gated.cost.macs(gated.widths),
                "params": gated.cost.params(gated.widths),
                "churn": self._churns[name].figures()["churn"],
                **{f"width/{group}": width for group, width in enumerate(gated.widths)},
            }
            pl_module.log_dict({f"{front}{key}": float(value) for key, value in figures.items()})
        rates = [group["lr"] for one in trainer.optimizers for group in one.param_groups]
        names = ["lr"] if len(rates) == 1 else [f"lr/{index}" for index in range(len(rates))]
        pl_module.log_dict(dict(zip(names, map(float, rates), strict=True)))


def _gated(module: Any) -> dict[str, GatedModule]:
    found = {name: item for name, item in module.named_modules() if isinstance(item, GatedModule)}
    if not found:
        raise TypeError(
            "LogPruning found no gated network in the LightningModule; make what "
            "fxprune.instrument returned an attribute of it"
        )
    return found
