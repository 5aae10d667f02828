"""The chart, rendered by Helm itself: the least rights, restricted pods, one source for CRD, dashboard and install.yaml."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import wrong_manifests
from lepton_operator.config import read_config
from lepton_operator.constants import lease_name
from lepton_operator.job import read_job
from lepton_operator.local.crd import crd, crd_text
from lepton_operator.metrics import JobCollector, Metrics
from lepton_operator.pods.manifests import PodDefaults, build_pod
from lepton_trainer.agent import settings, telemetry
from lepton_trainer.protocol import names
from lepton_trainer.protocol.slot import SIZE, SlotReader
from lepton_trainer.report import Reporter

CHARTS = Path(__file__).parents[2] / "charts"
CHART = CHARTS / "lepton-operator"
installer = runpy.run_path(str(CHARTS / "install_yaml.py"))
board = runpy.run_path(str(CHARTS / "dashboard.py"))
Json = dict[str, Any]

JOB_RIGHTS = {
    ("training.lepton.ai", "leptontrainingjobs", "get list watch"),
    ("training.lepton.ai", "leptontrainingjobs/status", "update"),
    ("", "pods", "get list watch create patch delete"),
    ("", "services", "get create update delete"),
    ("apps", "deployments", "get create update delete"),
    ("", "events", "list"),
    ("events.k8s.io", "events", "create patch"),
}
OWN_RIGHTS = {
    ("coordination.k8s.io", "leases", "create"),
    ("coordination.k8s.io", "leases lepton-operator.training.lepton.ai", "get update"),
    ("discovery.k8s.io", "endpointslices", "create"),
    ("discovery.k8s.io", "endpointslices lepton-operator-coordinator-leader lepton-operator-coordinator-leader-ipv6", "get update"),
    ("", "secrets lepton-operator-coordinator-ca", "get patch"),
}
CLUSTER_RIGHTS = {
    ("", "nodes", "list watch"),
    ("coordination.k8s.io", "leases", "get"),
    ("authentication.k8s.io", "tokenreviews", "create"),
}


def render(values: Json | None = None, name: str = "lepton-operator") -> list[Json]:
    items: list[Json] = installer["render"](values, name=name)
    return items


def of(items: list[Json], kind: str) -> list[Json]:
    return [item for item in items if item["kind"] == kind]


def one(items: list[Json], kind: str, suffix: str = "") -> Json:
    (item,) = [item for item in of(items, kind) if item["metadata"]["name"].endswith(suffix)]
    return item


def rights(role: Json) -> set[tuple[str, str, str]]:
    return {
        (group, " ".join([resource, *rule.get("resourceNames", ())]), " ".join(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def operator_pod(items: list[Json]) -> Json:
    pod: Json = one(items, "Deployment")["spec"]["template"]["spec"]
    return pod


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    else:
        yield str(value)


def test_the_chart_passes_helms_strict_lint() -> None:
    assert [entry for entry in helm_python.lint(CHART, strict=True)["messages"] if entry["severity"] > 1] == []


def test_the_crd_of_the_chart_is_the_crd_and_is_kept_on_uninstall() -> None:
    assert (CHART / "files" / "crd.yaml").read_text() == crd_text()
    rendered = one(render(), "CustomResourceDefinition")
    assert rendered["spec"] == crd()["spec"]
    assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_dashboard_is_what_its_script_builds() -> None:
    assert (CHART / "files" / "dashboard.json").read_text() == board["build"](), "run: make dashboard"
    assert one(render(), "ConfigMap")["data"]["lepton-training.json"] == board["build"]().rstrip("\n")


def test_install_yaml_is_what_the_chart_renders() -> None:
    assert installer["FILE"].read_text() == installer["build"](), "run: make install-yaml"
    items = list(yaml.safe_load_all(installer["FILE"].read_text()))
    assert items[0]["metadata"] == {"name": "lepton-system", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    assert not [text for text in strings(items) if "helm" in text.lower()]
    assert {item["kind"] for item in items} - {item["kind"] for item in render()} == {"Namespace"}


def test_install_yaml_takes_the_registry_and_tag_of_both_images() -> None:
    text = installer["build"](registry="registry.example.com/team", tag="7")
    assert "image: registry.example.com/team/lepton/operator:7" in text
    assert "--trainer-image=registry.example.com/team/lepton/trainer:7" in text


def test_the_operator_has_the_least_rights_in_the_cluster() -> None:
    items = render()
    assert rights(one(items, "Role")) == OWN_RIGHTS
    assert rights(one(items, "ClusterRole", "lepton-operator")) == JOB_RIGHTS | CLUSTER_RIGHTS
    bound = {binding["roleRef"]["name"] for binding in [*of(items, "RoleBinding"), *of(items, "ClusterRoleBinding")]}
    assert bound == {"lepton-operator", "lepton-system-lepton-operator"}


def test_an_installation_for_some_namespaces_has_no_cluster_wide_object() -> None:
    items = render({"watchNamespaces": ["a", "b"]})
    assert not {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"} & {item["kind"] for item in items}
    roles = {role["metadata"]["namespace"]: rights(role) for role in of(items, "Role")}
    assert roles == {"lepton-system": OWN_RIGHTS, "a": JOB_RIGHTS, "b": JOB_RIGHTS}
    assert {"--watch-namespace=a", "--watch-namespace=b"} <= set(operator_pod(items)["containers"][0]["args"])


def test_no_rule_has_a_wildcard() -> None:
    for values in ({}, {"watchNamespaces": ["a"]}):
        items = render(values)
        rules = [rule for role in [*of(items, "Role"), *of(items, "ClusterRole")] for rule in role["rules"]]
        assert [rule for rule in rules if "*" in strings(rule)] == []


def test_who_may_edit_a_namespace_may_edit_its_jobs_but_not_their_status() -> None:
    edit = one(render(), "ClusterRole", "-edit")
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert "leptontrainingjobs/status" not in [resource for _, resource, _ in rights(edit)]


def test_the_operators_pod_passes_restricted_pod_security() -> None:
    pod = operator_pod(render())
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {tuple(sorted(volume)) for volume in pod["volumes"]} == {("emptyDir", "name")}


def test_the_operator_is_told_what_its_objects_are_called() -> None:
    items = render({"watchNamespaces": ["a"], "image": {"pullSecrets": ["one"]}, "log": {"format": "text", "level": "debug"}}, name="prod")
    container = operator_pod(items)["containers"][0]
    fields = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container["env"]}
    addresses = {"POD_IP": "status.podIP", "POD_IPS": "status.podIPs"}
    assert fields == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"} | addresses
    arguments = [argument.replace("$(POD_NAMESPACE)", "lepton-system") for argument in container["args"]]
    config = read_config(arguments, {"POD_IP": "10.0.0.1", "POD_NAME": "prod-1"})
    assert (config.namespace, config.release, config.watch_namespaces) == ("lepton-system", "prod", ("a",))
    assert (config.log_format, config.log_level, config.metrics_port) == ("text", "debug", 8080)
    assert (config.trainer_image, config.trainer_pull_policy) == ("lepton/trainer:0.1.0", "IfNotPresent")
    assert config.trainer_pull_secrets == ("one",)
    assert config.ca_secret == one(items, "Secret")["metadata"]["name"] == "prod-lepton-coordinator-ca"
    service = one(items, "Service", "-coordinator")
    assert (config.coordinator_service, config.coordinator_port) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    named = {resource for _, resource, _ in rights(one(items, "Role", "prod-lepton"))}
    assert {f"secrets {config.ca_secret}", f"leases {lease_name(config.release)}"} <= named


def test_monitor_and_network_policy_choose_the_pods_of_workers() -> None:
    job = read_job({**wrong_manifests.job(), "metadata": {"name": "a", "namespace": "b", "uid": "c"}})
    pod = build_pod(job, PodDefaults("lepton/trainer:1", "tls://x:1"), "a-0-aaaaa", 0)
    items = render({"monitors": {"enabled": True}})
    monitor, policy = one(items, "PodMonitor")["spec"], one(items, "NetworkPolicy")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert monitor["podMetricsEndpoints"][0]["port"] in [port["name"] for port in pod["spec"]["containers"][0]["ports"]]


def test_probes_ask_the_ports_that_are_named() -> None:
    container = operator_pod(render())["containers"][0]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"coordinator": 7443, "http": 8080}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_the_coordinators_service_has_no_selector_and_the_ca_secret_no_data() -> None:
    items = render()
    assert "selector" not in one(items, "Service", "-coordinator")["spec"]
    secret = one(items, "Secret")
    assert not {"data", "stringData"} & secret.keys()
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_disruption_budget_comes_with_the_second_replica() -> None:
    assert of(render(), "PodDisruptionBudget") == []
    items = render({"replicas": 2})
    pods = one(items, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert one(items, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= pods.items()


def test_monitors_honour_the_labels_of_the_series() -> None:
    assert of(render(), "PodMonitor") == []
    items = render({"monitors": {"enabled": True, "labels": {"release": "prometheus"}}})
    pods, services = one(items, "PodMonitor"), one(items, "ServiceMonitor")
    assert [endpoint["honorLabels"] for endpoint in pods["spec"]["podMetricsEndpoints"] + services["spec"]["endpoints"]] == [True, True]
    assert pods["spec"]["namespaceSelector"] == {"any": True}
    assert pods["metadata"]["labels"]["release"] == services["metadata"]["labels"]["release"] == "prometheus"
    selector = services["spec"]["selector"]["matchLabels"]
    chosen = [item for item in of(items, "Service") if selector.items() <= item["metadata"]["labels"].items()]
    assert [item["metadata"]["name"] for item in chosen] == ["lepton-operator-metrics"]
    some = one(render({"monitors": {"enabled": True}, "watchNamespaces": ["a"]}), "PodMonitor")
    assert some["spec"]["namespaceSelector"] == {"matchNames": ["a"]}


def test_who_has_no_prometheus_operator_finds_the_operator_by_annotations() -> None:
    def annotations(values: Json) -> Json:
        found: Json = one(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        return found

    assert annotations({})["prometheus.io/port"] == "8080"
    assert "prometheus.io/scrape" not in annotations({"monitors": {"enabled": True}})


def test_the_network_policy_lets_agents_in_and_can_be_left_out() -> None:
    rules = one(render(), "NetworkPolicy")["spec"]["ingress"]
    assert rules[0]["ports"] == [{"port": "coordinator", "protocol": "TCP"}]
    assert rules[0]["from"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/managed-by": "lepton-operator"}}
    assert of(render({"networkPolicy": {"enabled": False}}), "NetworkPolicy") == []


def test_registry_tag_and_pull_secrets_are_written_once_for_both_images() -> None:
    image = {"registry": "registry.example.com/team", "tag": "12345678", "pullSecrets": ["one", "two"], "pullPolicy": "Always"}
    pod = operator_pod(render({"image": image}))
    container = pod["containers"][0]
    assert container["image"] == "registry.example.com/team/lepton/operator:12345678"
    assert "--trainer-image=registry.example.com/team/lepton/trainer:12345678" in container["args"]
    assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert {"--trainer-pull-secret=one", "--trainer-pull-secret=two", "--trainer-pull-policy=Always"} <= set(container["args"])


def test_an_image_may_have_a_tag_or_digest_of_its_own() -> None:
    digest = "sha256:" + "0" * 64
    image = {"registry": "registry.example.com:5000", "operator": "team/operator:7", "trainer": f"team/trainer@{digest}", "tag": "8"}
    container = operator_pod(render({"image": image}))["containers"][0]
    assert container["image"] == "registry.example.com:5000/team/operator:7"
    assert f"--trainer-image=registry.example.com:5000/team/trainer@{digest}" in container["args"]


FROM_FILE = helm_python.values_from_yaml("image: {tag: 12345678}")
FROM_SET = helm_python.parse_set_string("image.tag=12345678")


@pytest.mark.parametrize("values", [FROM_FILE, FROM_SET], ids=["values file", "--set"])
def test_a_tag_of_digits_without_quotes_is_refused_with_what_to_write(values: Json) -> None:
    words = r"image\.tag is the number 12345678: put it in quotes .* or use --set-string image\.tag="
    with pytest.raises(helm_python.HelmError, match=words):
        render(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": 0}, "replicas"),
        ({"image": {"registry": "registry.example.com/"}}, "registry"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"watchNamespaces": ["A_B"]}, "watchNamespaces"),
        ({"monitors": {"interval": "often"}}, "interval"),
        ({"log": {"level": "loud"}}, "level"),
    ],
)
def test_wrong_values_are_refused_by_the_schema(values: Json, words: str) -> None:
    with pytest.raises(helm_python.HelmError, match=words):
        render(values)


def test_the_schema_names_every_value_and_no_other() -> None:
    with helm_python.Chart.load(CHART) as chart:
        assert set(chart.schema["properties"]) - {"global"} == set(chart.values)
        for name, part in chart.schema["properties"].items():
            if "properties" in part:
                assert set(part["properties"]) == set(chart.values[name]), name


def test_a_long_release_name_gives_names_that_kubernetes_takes() -> None:
    items = render(name="r" * 53)
    for item in [*of(items, "Service"), *of(items, "Deployment")]:
        assert len(item["metadata"]["name"]) <= 63


def test_the_notes_end_with_three_commands_and_a_job_that_the_crd_accepts() -> None:
    from lepton_operator.local.validation import validate

    with helm_python.Chart.load(CHART) as chart:
        notes = chart.render({}, name="lepton-operator", namespace="lepton-system")["lepton-operator/templates/NOTES.txt"]
    assert re.findall(r"^(\d)\. ", notes, re.MULTILINE) == ["1", "2", "3"]
    validate(yaml.safe_load(re.search(r"<<'END'\n(.*?)\n +END", notes, re.DOTALL).group(1)))


def exposed(run_dir: Path) -> set[str]:
    """The names of the series that Prometheus gets from the operator and from a worker."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    families = [*Metrics().registry.collect(), *JobCollector(dict).describe()]
    operator = {f"{family.name}{suffix}" for family in families for suffix in suffixes.get(family.type, [""])}
    told = {names.JOB_NAME: "a", names.WORKER_INDEX: "0", names.WORKER_UID: "u", names.COORDINATOR: "tcp://x:1"}
    buffer, meter = bytearray(SIZE), telemetry.Meter()
    meter.begin(1, [SlotReader(buffer)], None)
    Reporter(buffer).report(step=1, metrics={"accuracy": 0.5})
    text = telemetry.exposition(settings.read({**told, names.RUN_DIR: str(run_dir)}, ["python"]), meter, [0], {"warm": 1})
    return operator | {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_the_dashboard_asks_only_for_metrics_that_are_exposed(tmp_path: Path) -> None:
    asked = {name for _, expression in board["queries"]() for name in re.findall(r"\blepton_(?:job|train|operator)_[a-z_]+", expression)}
    assert len(asked) > 20
    assert asked - exposed(tmp_path) == set()
