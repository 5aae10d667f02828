"""A real Prometheus beside the cluster: it finds pods by itself through Kubernetes' discovery and answers PromQL on loopback."""

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from cluster import daemons, gotools, substrate
from cluster.places import STATE
from cluster.terminal import Refused, wait_until

DAEMON = "prometheus"
FOLDER = STATE / "prometheus"
PORT = 19090


def pod_scrape_config(kubeconfig: Path, interval: str = "1s") -> dict[str, object]:
    """The configuration that scrapes every running pod annotated `prometheus.io/scrape: "true"` at the port of `prometheus.io/port`.

    Labels that a pod sets itself win (`honor_labels`), as the project's monitors have it.
    """
    annotation = "__meta_kubernetes_pod_annotation_prometheus_io"
    relabel: list[dict[str, object]] = [
        {"source_labels": [f"{annotation}_scrape"], "regex": "true", "action": "keep"},
        {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Running", "action": "keep"},
        # A pod has one target for each declared port, and one more without a port: all become the same address, and so one target.
        {
            "source_labels": ["__meta_kubernetes_pod_ip", f"{annotation}_port"],
            "separator": ":",
            "regex": r"(.+:\d+)",
            "target_label": "__address__",
            "action": "replace",
        },
        {"source_labels": [f"{annotation}_path"], "regex": "(.+)", "target_label": "__metrics_path__", "action": "replace"},
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
    ]
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "scrape_configs": [
            {
                "job_name": "pods",
                "honor_labels": True,
                "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(kubeconfig)}],
                "relabel_configs": relabel,
            }
        ],
    }


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus at a loopback port."""

    port: int = PORT

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://127.0.0.1:{self.port}"

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """The samples that an instant query gives: labels and value. Raises Refused with Prometheus' words for a bad query."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': promql})}", timeout=10) as response:
                result = json.loads(response.read())["data"]["result"]
        except urllib.error.HTTPError as error:
            raise Refused(f"{promql}: {json.loads(error.read()).get('error', error)}") from error
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    def ready(self) -> bool:
        """Whether it answers queries."""
        daemons.require_running([DAEMON])
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False


def start(config: dict[str, object] | Path | None = None, port: int = PORT) -> Prometheus:
    """Start Prometheus, or have it go on when it runs just so.

    `config` is a configuration or a file of one (default: all annotated pods of the cluster that serves here, scraped every second).
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    if isinstance(config, Path):
        file = config.absolute()
    else:
        file = FOLDER / "prometheus.yaml"
        file.write_text(json.dumps(config or pod_scrape_config(substrate.kubeconfig()), indent=2))
    arguments = (
        str(gotools.tool("prometheus")),
        f"--config.file={file}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={FOLDER / 'data'}",
        "--storage.tsdb.retention.time=1d",
        "--log.level=warn",
    )
    daemons.start(daemons.Daemon(DAEMON, arguments, (file,)))
    running = Prometheus(port)
    wait_until("Prometheus answers", running.ready, 30)
    return running


def stop() -> None:
    """End Prometheus; its data stay until the cluster goes down."""
    daemons.stop([DAEMON])
