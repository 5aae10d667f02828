"""As much of torch as a warm parent and a store need, which import in no time; no rank can train with it."""

from pathlib import Path

STORE = """
import socket

class TCPStore:
    def __init__(self, host, port, is_master, wait_for_workers):
        self.listener = socket.create_server((host, port))
        self.port = self.listener.getsockname()[1]
"""
NO_STORE = """
class TCPStore:
    def __init__(self, *arguments, **options):
        raise RuntimeError("no port is left")
"""


def make_torch(folder: Path, store: str = STORE) -> None:
    """As much of torch as a parent that forks no rank needs."""
    for package in ("torch", "torch/distributed", "torch/nn", "torch/_dynamo"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("")
    (folder / "torch/nn/parallel.py").write_text("")
    (folder / "torch/distributed/__init__.py").write_text("import torch.distributed.rendezvous\n")
    (folder / "torch/distributed/rendezvous.py").write_text(store)
