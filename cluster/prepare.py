"""All that takes long and happens once on a machine, side by side: Kubernetes from source, the images and their bases, the other tools."""

import concurrent.futures
from collections.abc import Callable
from functools import partial

from cluster import bases, gotools, images, machine, substrate
from cluster.places import locked
from cluster.terminal import Refused


def everything() -> None:
    """Have it all. The first failure is raised once the others are through, so what they made is kept."""
    kind = substrate.choose()
    if kind == substrate.EMBEDDED:
        machine.require_root_and_kernel()
        machine.install({**machine.NODE_PROGRAMS, **machine.IMAGE_PROGRAMS})
        machine.require_network()
    # One after the other within a lane: two Go builds at once would only fight for the same cores.
    lanes: list[list[Callable[[], object]]] = [[partial(gotools.tool, name) for name in ("helm", "kwok", "prometheus", "promtool")]]
    if kind == substrate.EMBEDDED:
        lanes[0].insert(0, gotools.kubernetes)
        lanes.append([partial(bases.require, "trainer"), partial(bases.require, "operator"), _images])
    with concurrent.futures.ThreadPoolExecutor(len(lanes)) as pool:
        results = [pool.submit(_in_order, lane) for lane in lanes]
        failures = [error for result in results if (error := result.exception())]
    if failures:
        raise failures[0] if isinstance(failures[0], Refused) else RuntimeError(f"preparing failed: {failures[0]!r}") from failures[0]


def _images() -> None:
    with locked("images"):
        for target in images.TARGETS:
            images.build(target)


def _in_order(lane: list[Callable[[], object]]) -> None:
    for have in lane:
        have()
