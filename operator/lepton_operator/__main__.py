"""`lepton-operator`: reads its configuration, sets up logging, runs one replica until it is told to stop."""

import logging
import sys

import uvloop
from kubernetes.aio.config import ConfigException

from lepton_operator import logs
from lepton_operator.config import Config, read_config
from lepton_operator.replica import Replica

log = logging.getLogger(__name__)


def main() -> int:
    """The exit code: 0 after SIGTERM or SIGINT."""
    config = read_config(sys.argv[1:])
    logs.set_up(config.log_format, config.log_level)
    log.info("lepton-operator %s serves %s", config.manager, ", ".join(config.watch_namespaces) or "the whole cluster")
    try:
        return uvloop.run(_run(config))
    except (OSError, ConfigException) as error:  # a port that is taken, no kubeconfig
        log.critical("the operator cannot run: %s", error)
        return 1


async def _run(config: Config) -> int:
    return await Replica(config).run()


if __name__ == "__main__":
    sys.exit(main())
