"""Renders the chart into one file for `kubectl apply -f`: `python charts/install_yaml.py [--registry R] [--tag T] ...`.

`make install-yaml` writes `charts/install.yaml`, which a test compares with the chart. What only Helm understands is left out, and the
namespace is made with restricted pod security enforced.
"""

import argparse
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHARTS = Path(__file__).parent
CHART = CHARTS / "lepton-operator"
FILE = CHARTS / "install.yaml"
NAME, NAMESPACE = "lepton-operator", "lepton-system"
HEAD = "# Made from charts/lepton-operator by `make install-yaml`. Apply: kubectl apply -f install.yaml\n"
FIRST = ("Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
Json = dict[str, Any]


def render(values: Json | None = None, name: str = NAME, namespace: str = NAMESPACE) -> list[Json]:
    """The chart's objects. Raises `helm_python.HelmError` with Helm's words for values that are refused."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values or {}, name=name, namespace=namespace)
    return [item for path, text in files.items() if not path.endswith("NOTES.txt") for item in yaml.safe_load_all(text) if item]


def without_helm(item: Json) -> Json:
    for metadata in (item["metadata"], item.get("spec", {}).get("template", {}).get("metadata", {})):
        labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
        labels.pop("helm.sh/chart", None)
        if labels.get("app.kubernetes.io/managed-by") == "Helm":
            del labels["app.kubernetes.io/managed-by"]
        annotations.pop("helm.sh/resource-policy", None)
        if "annotations" in metadata and not annotations:
            del metadata["annotations"]
    return item


def build(registry: str = "", tag: str = "", namespace: str = NAMESPACE) -> str:
    home = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    items = [home, *(without_helm(item) for item in render({"image": {"registry": registry, "tag": tag}}, namespace=namespace))]
    items.sort(key=lambda item: FIRST.index(item["kind"]) if item["kind"] in FIRST else len(FIRST))
    return HEAD + "---\n".join(yaml.safe_dump(item, sort_keys=False, width=150, allow_unicode=True) for item in items)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--registry", default="", help="where both images were pushed, for example registry.example.com/team")
    options.add_argument("--tag", default="", help="of both images; the chart's appVersion if empty")
    options.add_argument("--namespace", default=NAMESPACE, help="where the operator is to live")
    options.add_argument("--output", type=Path, default=FILE)
    chosen = options.parse_args()
    chosen.output.write_text(build(chosen.registry, chosen.tag, chosen.namespace), encoding="utf-8")
    print(f"wrote {chosen.output}")
