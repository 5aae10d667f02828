"""The built-in trainer: from data and a goal to a trained model, exactly, whatever happens to the processes on the way.

`loop.py` is the place to start reading. Each other module is one room: `config` what a user may write, `tasks` and `models` what is
learnt, `data` in which order, `parallel` on how many processes, `checkpoint` how it is kept. Models know nothing of parallelism.

For a loop of one's own there are three names here, and `report`, `should_stop` and `checkpoint_dir` in `lepton_trainer.report`:

    Order(seed, size).at(start, stop)         which samples stand at these positions of the stream
    share(start, stop, rank, world)           which of the positions are this process's
    Checkpointer(path, identity)              restore, save, before_update, close

`examples/own-loop.py` uses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lepton_trainer.train.checkpoint import Checkpointer
    from lepton_trainer.train.data.order import Order, share

__all__ = ["Checkpointer", "Order", "share"]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line answers a mistake in a configuration without importing torch."""
    if name == "Checkpointer":
        from lepton_trainer.train.checkpoint import Checkpointer

        return Checkpointer
    if name in ("Order", "share"):
        from lepton_trainer.train.data import order

        return getattr(order, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
