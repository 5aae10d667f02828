"""Stock torchrun as it is, but for one thing: a torch built without libuv (Debian's 2.6) is not asked for it, and torchrun has no option.

Its ranks then make a store of their own instead of sharing the agent's, which recovers faster than sharing does, not slower.
"""

import functools
import os

from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend

if os.environ.get("USE_LIBUV") == "0":
    c10d_rendezvous_backend.TCPStore = functools.partial(c10d_rendezvous_backend.TCPStore, use_libuv=False)
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")

from torch.distributed.run import main

main()
