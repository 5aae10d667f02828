"""The operator's command line and environment, read once into one frozen object."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lepton_trainer.protocol import names


@dataclass(frozen=True, slots=True)
class Config:
    """How this installation runs. `pod_*` identify this replica, `namespace/release` the installation."""

    namespace: str
    release: str
    watch_namespaces: tuple[str, ...]  # empty: the whole cluster
    coordinator_service: str
    coordinator_port: int
    metrics_port: int
    trainer_image: str
    trainer_pull_policy: str
    trainer_pull_secrets: tuple[str, ...]
    ca_secret: str
    log_format: str
    log_level: str
    api_qps: float
    workers: int
    kubeconfig: str
    pod_name: str
    pod_ips: tuple[str, ...]  # one of each address family that the pod has
    in_pod: bool  # `pod_name` is that of a pod

    @property
    def manager(self) -> str:
        """Who claims a job: stable over restarts and reinstallations."""
        return f"{self.namespace}/{self.release}"

    @property
    def coordinator_host(self) -> str:
        return f"{self.coordinator_service}.{self.namespace}.svc"

    @property
    def coordinator_address(self) -> str:
        return f"tls://{self.coordinator_host}:{self.coordinator_port}"


def read_config(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Config:
    """Exits with a message (argparse's way) when something required is missing or wrong."""
    parser = argparse.ArgumentParser(
        prog="lepton-operator", description="Runs LeptonTrainingJobs.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--namespace", default=environment.get("POD_NAMESPACE", ""), help="where the operator itself lives (lease, coordinator, CA)")
    add("--release-name", default="lepton-operator", help="with the namespace, the name under which this installation claims jobs")
    add("--watch-namespace", action="append", default=[], metavar="NAMESPACE", help="serve only this namespace; repeatable")
    add("--coordinator-service", default="lepton-operator-coordinator", help="Service under which agents find the leader")
    add("--coordinator-port", type=_port, default=names.COORDINATOR_PORT, help="port of that Service, and of the coordinator here")
    add("--metrics-port", type=_port, default=8080, help="port of /metrics, /healthz and /readyz")
    add("--trainer-image", default="", help="image of jobs that name none, and the source of the agent for those that do")
    add("--trainer-pull-policy", default="", choices=["", "Always", "IfNotPresent", "Never"], help="imagePullPolicy of that image")
    add("--trainer-pull-secret", action="append", default=[], metavar="NAME", help="imagePullSecret of workers; repeatable")
    add("--ca-secret", default="lepton-operator-coordinator-ca", help="Secret with the coordinator's CA; the leader fills an empty one")
    add("--log-format", default="json", choices=["json", "text"], help="one JSON object per line, or text for people")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="the least that is logged")
    add("--api-qps", type=_positive, default=200.0, help="requests per second to the API server; bursts are twice that")
    add("--workers", type=_positive_int, default=16, help="jobs that are looked at side by side")
    add("--kubeconfig", default="", help="outside a cluster: the kubeconfig to use")
    given = parser.parse_args(arguments)
    for option, value in (("--namespace", given.namespace), ("--trainer-image", given.trainer_image)):
        if not value:
            parser.error(f"{option} is required" + (" (or the variable POD_NAMESPACE)" if option == "--namespace" else ""))
    pod_ips = tuple(filter(None, environment.get("POD_IPS", "").split(","))) or tuple(filter(None, [environment.get("POD_IP", "")]))
    if not pod_ips:
        parser.error("the variable POD_IP is required: the address under which agents reach this replica")
    return Config(
        namespace=given.namespace,
        release=given.release_name,
        watch_namespaces=tuple(dict.fromkeys(given.watch_namespace)),
        coordinator_service=given.coordinator_service,
        coordinator_port=given.coordinator_port,
        metrics_port=given.metrics_port,
        trainer_image=given.trainer_image,
        trainer_pull_policy=given.trainer_pull_policy,
        trainer_pull_secrets=tuple(given.trainer_pull_secret),
        ca_secret=given.ca_secret,
        log_format=given.log_format,
        log_level=given.log_level,
        api_qps=given.api_qps,
        workers=given.workers,
        kubeconfig=given.kubeconfig,
        pod_name=environment.get("POD_NAME") or f"lepton-operator-{os.getpid()}",
        pod_ips=pod_ips,
        in_pod="POD_NAME" in environment,
    )


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 1 and 65535")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _positive_int(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
