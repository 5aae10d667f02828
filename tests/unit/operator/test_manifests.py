"""A job becomes pods: what the user wrote arrives, what makes the pod a worker cannot be taken away."""

import pytest

from builders.api_objects import job
from lepton_operator import constants as c
from lepton_operator.pods.manifests import PodDefaults, build_event, build_pod, build_service, owned_env, template_digest
from lepton_operator.substrate import Event
from lepton_trainer.protocol import names

DEFAULTS = PodDefaults(image="registry.example/trainer:1", coordinator="tls://coordinator.lepton.svc:7443", ca="PEM")


def build(index=0, defaults=DEFAULTS, **spec):
    return build_pod(job(**spec), defaults, f"digits-{index}-aaaaa", index)


def trainer(pod):
    return pod["spec"]["containers"][0]


def env(pod):
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in trainer(pod)["env"]}


def volume(pod, name):
    return next(entry for entry in pod["spec"]["volumes"] if entry["name"] == name)


def mount(pod, name):
    return next(entry for entry in trainer(pod)["volumeMounts"] if entry["name"] == name)


def test_a_pod_is_named_owned_and_labelled_so_that_it_is_found_again():
    pod = build(index=3)
    assert pod["metadata"]["name"] == "digits-3-aaaaa"
    assert pod["metadata"]["labels"][c.LABEL_WORKER_INDEX] == "3"
    assert pod["metadata"]["labels"][c.LABEL_JOB_NAME] == "digits"
    (owner,) = pod["metadata"]["ownerReferences"]
    assert owner["uid"] == "job-1" and owner["controller"] and "blockOwnerDeletion" not in owner
    assert pod["spec"]["hostname"] == "digits-3" and "subdomain" not in pod["spec"]
    assert pod["spec"]["restartPolicy"] == "Never"


def test_our_image_runs_the_agent_and_a_foreign_one_gets_it_by_an_init_container():
    own = build(trainer={"command": ["python", "train.py"], "args": ["--lr", "1"]})
    assert trainer(own)["image"] == DEFAULTS.image
    assert trainer(own)["command"][-6:] == ["lepton_trainer.agent", "--", "python", "train.py", "--lr", "1"]
    assert "initContainers" not in own["spec"]

    foreign = build(trainer={"image": "nvcr.io/pytorch:26.01", "command": ["/opt/conda/bin/python3.12", "train.py"]})
    (copy,) = foreign["spec"]["initContainers"]
    assert copy["image"] == DEFAULTS.image and copy["command"][-2:] == ["install", copy["volumeMounts"][0]["mountPath"]]
    command = trainer(foreign)["command"]
    assert command[0] == "/opt/conda/bin/python3.12" and command[2:] == ["--", "/opt/conda/bin/python3.12", "train.py"]
    assert command[1].startswith(mount(foreign, c.VOLUME_AGENT)["mountPath"])
    assert copy["volumeMounts"][0]["name"] == c.VOLUME_AGENT


def test_the_built_in_trainer_is_a_command_with_its_settings_beside_it():
    builtin = {"imageClassification": {"training": {"epochs": 3.0, "globalBatch": 32.0}}}
    pod = build(trainer={"builtin": builtin}, checkpoint={"claimName": "c", "path": "a"})
    assert trainer(pod)["command"][-5:] == ["--", "python3", "-m", "lepton_trainer", "train"]
    assert env(pod)[names.BUILTIN] == '{"imageClassification":{"training":{"epochs":3,"globalBatch":32}}}'
    assert env(pod)[names.CHECKPOINT_DIR] == f"{c.CHECKPOINTS_DIR}/a/round-0"
    assert names.BUILTIN not in env(build())
    cache = [{"name": names.CACHE, "value": "/data/cache"}]
    assert env(build(trainer={"builtin": builtin, "env": cache}))[names.CACHE] == "/data/cache"


@pytest.mark.parametrize(
    ("command", "interpreter"),
    [
        (["python", "x.py"], "python"),
        (["/venv/bin/python3", "x.py"], "/venv/bin/python3"),
        (["bash", "run.sh"], "python3"),
        (["./python-train", "x"], "python3"),
    ],
)
def test_the_agent_in_a_foreign_image_uses_the_commands_python_if_it_is_one(command, interpreter):
    assert trainer(build(trainer={"image": "other", "command": command}))["command"][0] == interpreter


def test_the_users_environment_wins_with_one_entry_per_name():
    wanted = [
        {"name": "PYTHONUNBUFFERED", "value": "0"},
        {"name": "OMP_NUM_THREADS", "value": "3"},
        {"name": "NCCL_DEBUG", "value": "WARN"},
    ]
    pod = build(trainer={"env": [*wanted, {"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "HOME", "value": "/root"}]})
    listed = [entry["name"] for entry in trainer(pod)["env"]]
    assert len(listed) == len(set(listed))
    values = env(pod)
    assert (values["PYTHONUNBUFFERED"], values["OMP_NUM_THREADS"], values["NCCL_DEBUG"], values["HOME"]) == ("0", "3", "INFO", "/root")


def test_names_we_own_are_left_out_and_reported_except_the_two_that_users_may_set():
    wanted = [{"name": name, "value": "x"} for name in ("RANK", "LEPTON_JOB_UID", names.WARM_START, "MY_RANK")]
    template = {"spec": {"containers": [{"name": "trainer", "env": [{"name": "MASTER_ADDR", "value": "x"}]}]}}
    spec = {"trainer": {"env": wanted}, "workers": {"template": template}}
    assert owned_env(job(**spec)) == ("MASTER_ADDR", "RANK", "LEPTON_JOB_UID")
    values = env(build(**spec))
    assert "RANK" not in values and "MASTER_ADDR" not in values
    assert values["LEPTON_JOB_UID"] == "job-1" and values[names.WARM_START] == "x" and values["MY_RANK"] == "x"


def test_variables_of_ours_can_be_used_in_the_users_values():
    listed = [entry["name"] for entry in trainer(build(trainer={"env": [{"name": "OUT", "value": "$(LEPTON_JOB_NAME)"}]}))["env"]]
    assert listed.index("LEPTON_JOB_NAME") < listed.index("OUT")


def test_the_agent_learns_who_and_where_it_is():
    values = env(build(index=1, workers={"procsPerWorker": 4}))
    assert values[names.WORKER_UID] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert values[names.HOST] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert (values[names.PROCS], values[names.WORKER_INDEX], values[names.GRACE_SECONDS]) == ("4", "1", "30")


def test_token_ca_and_the_coordinators_address_come_by_a_volume_that_is_renewed_in_place():
    pod = build()
    token, told = volume(pod, c.VOLUME_IDENTITY)["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == names.TOKEN_AUDIENCE
    assert token["serviceAccountToken"]["expirationSeconds"] == 3600
    folder = mount(pod, c.VOLUME_IDENTITY)["mountPath"]
    files = {f"{folder}/{item['path']}": item["fieldRef"]["fieldPath"] for item in told["downwardAPI"]["items"]}
    for file, annotation, value in (
        (env(pod)[names.CA_FILE], c.ANNOTATION_CA, "PEM"),
        (env(pod)[names.COORDINATOR].removeprefix("file:"), c.ANNOTATION_COORDINATOR, DEFAULTS.coordinator),
    ):
        assert files[file] == f"metadata.annotations['{annotation}']"
        assert pod["metadata"]["annotations"][annotation] == value
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert env(pod)[names.TOKEN_FILE].startswith(folder)


def test_a_pod_passes_restricted_pod_security_and_has_a_home():
    pod = build(trainer={"image": "other"})
    security = pod["spec"]["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] == 65532 and security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["spec"]["containers"], *pod["spec"]["initContainers"]):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    values = env(pod)
    for name in ("HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", names.RUN_DIR):
        assert values[name].startswith(mount(pod, c.VOLUME_HOME)["mountPath"])
    assert values["USER"]


def test_a_template_that_asks_for_root_gets_it():
    pod = build(workers={"template": {"spec": {"securityContext": {"runAsUser": 0}}}})
    assert pod["spec"]["securityContext"]["runAsUser"] == 0
    assert "runAsNonRoot" not in pod["spec"]["securityContext"]


def test_null_in_a_template_takes_a_default_away():
    pod = build(workers={"template": {"spec": {"securityContext": {"runAsUser": None, "fsGroup": None}}}})
    assert "runAsUser" not in pod["spec"]["securityContext"] and "fsGroup" not in pod["spec"]["securityContext"]


def test_a_template_is_merged_and_cannot_take_over_what_is_ours():
    template = {
        "metadata": {"labels": {"team": "a", c.LABEL_JOB_NAME: "other"}, "annotations": {"note": "x", "prometheus.io/port": "1"}},
        "spec": {
            "restartPolicy": "Always",
            "hostname": "other",
            "nodeSelector": {"gpu": "h100"},
            "priorityClassName": "high",
            "serviceAccountName": "reader",
            "automountServiceAccountToken": True,
            "terminationGracePeriodSeconds": 120,
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": c.VOLUME_HOME, "hostPath": {"path": "/"}}],
            "initContainers": [{"name": "fetch", "image": "curl"}],
            "containers": [
                {"name": "side", "image": "side"},
                {
                    "name": "trainer",
                    "image": "other",
                    "command": ["sh"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "ports": [{"containerPort": 29500}],
                    "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
                    "envFrom": [{"secretRef": {"name": "s"}}],
                    "resources": {"limits": {"cpu": "1"}},
                },
            ],
        },
    }
    pod = build(workers={"template": template, "resources": {"limits": {"memory": "1Gi"}}})
    spec, meta, ours = pod["spec"], pod["metadata"], trainer(pod)
    assert meta["labels"]["team"] == "a" and meta["labels"][c.LABEL_JOB_NAME] == "digits"
    assert meta["annotations"]["note"] == "x" and meta["annotations"]["prometheus.io/port"] == "9400"
    assert (spec["restartPolicy"], spec["hostname"]) == ("Never", "digits-0")
    assert (spec["nodeSelector"], spec["priorityClassName"], spec["serviceAccountName"]) == ({"gpu": "h100"}, "high", "reader")
    assert spec["automountServiceAccountToken"] is True and spec["terminationGracePeriodSeconds"] == 120
    assert env(pod)[names.GRACE_SECONDS] == "120"
    assert [entry["key"] for entry in spec["tolerations"]][-1] == "gpu" and len(spec["tolerations"]) == 3
    assert [entry["name"] for entry in spec["volumes"] if "hostPath" in entry] == []
    assert [entry["name"] for entry in spec["containers"]] == ["trainer", "side"]
    assert [entry["name"] for entry in spec["initContainers"]] == ["fetch"]
    assert ours["image"] == DEFAULTS.image and ours["command"][0] == "python3"
    assert mount(pod, "data")["mountPath"] == "/data" and ours["lifecycle"] and ours["envFrom"] == [{"secretRef": {"name": "s"}}]
    assert ours["resources"] == {"limits": {"cpu": "1", "memory": "1Gi"}}
    assert [port["containerPort"] for port in ours["ports"]] == [9400, 29500]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}, ["unreachable"]),
        ({"operator": "Exists"}, []),
    ],
)
def test_a_longer_toleration_of_the_user_replaces_ours(given, left):
    tolerations = build(workers={"template": {"spec": {"tolerations": [given]}}})["spec"]["tolerations"]
    assert [entry["key"].rpartition("/")[2] for entry in tolerations if entry.get("tolerationSeconds") == 30] == left


def test_shared_memory_checkpoint_code_and_patterns_arrive():
    pod = build(
        trainer={"code": {"configMap": "script"}, "envFrom": [{"configMapRef": {"name": "cm"}}]},
        workers={"sharedMemory": "1Gi"},
        checkpoint={"claimName": "claim"},
        metrics={"fromLogs": [{"name": "loss", "pattern": "loss=(.*)"}]},
    )
    assert volume(pod, c.VOLUME_SHARED_MEMORY)["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    assert mount(pod, c.VOLUME_SHARED_MEMORY)["mountPath"] == "/dev/shm"
    assert volume(pod, c.VOLUME_CHECKPOINTS)["persistentVolumeClaim"] == {"claimName": "claim"}
    assert env(pod)[names.CHECKPOINT_DIR] == "/checkpoints/digits/round-0"
    assert mount(pod, c.VOLUME_CODE)["mountPath"] == trainer(pod)["workingDir"] and mount(pod, c.VOLUME_CODE)["readOnly"]
    assert trainer(pod)["envFrom"] == [{"configMapRef": {"name": "cm"}}]
    assert env(pod)[names.LOG_PATTERNS] == '[{"name": "loss", "pattern": "loss=(.*)"}]'
    plain = build()
    assert names.CHECKPOINT_DIR not in env(plain) and "workingDir" not in trainer(plain)


def test_gpus_are_told_to_the_script():
    limits = {"limits": {"nvidia.com/gpu": 8}}
    values = env(build(workers={"resources": limits, "template": {"spec": {"nodeSelector": {"nvidia.com/gpu.product": "H100"}}}}))
    assert (values["LEPTON_RESOURCE_ACCELERATOR_NUM"], values["LEPTON_RESOURCE_ACCELERATOR_TYPE"], values[names.PROCS]) == (
        "8",
        "H100",
        "8",
    )


@pytest.mark.parametrize(
    ("template", "resources", "procs"),
    [
        ({"limits": {"nvidia.com/gpu": 4}}, {}, 4),
        ({"limits": {"nvidia.com/gpu": "4"}}, {"limits": {"cpu": 8}}, 4),
        ({"limits": {"nvidia.com/gpu": 4}}, {"limits": {"nvidia.com/gpu": 2}}, 2),
        ({"requests": {"nvidia.com/mig-1g.10gb": 3}}, {"limits": {"cpu": 8}}, 3),
        ({"limits": {"nvidia.com/gpu": "half"}}, {}, 1),
        ({"limits": "many"}, {"limits": {"nvidia.com/gpu": 2}}, 2),
    ],
)
def test_gpus_that_the_template_gives_the_trainer_are_counted_too(template, resources, procs):
    containers = [
        {"name": "side", "image": "x", "resources": {"limits": {"nvidia.com/gpu": 8}}},
        {"name": "trainer", "resources": template},
    ]
    values = env(build(workers={"template": {"spec": {"containers": containers}}, "resources": resources}))
    assert values[names.PROCS] == str(procs)
    assert values["LEPTON_RESOURCE_ACCELERATOR_TYPE"] == ("nvidia.com/mig-1g.10gb" if "requests" in template else "nvidia.com/gpu")


def test_names_between_pods_exist_only_where_they_are_asked_for():
    asking = job(intraJobCommunication=True)
    service = build_service(asking)
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    pod = build_pod(asking, DEFAULTS, "digits-0-a", 0)
    assert pod["spec"]["subdomain"] == service["metadata"]["name"] == env(pod)["LEPTON_SUBDOMAIN"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_template_digest_is_one_for_all_workers_and_changes_with_the_pod():
    digest = template_digest(job(), DEFAULTS)
    pods = [build(index=index) for index in (0, 1)]
    assert {pod["metadata"]["annotations"][c.ANNOTATION_TEMPLATE] for pod in pods} == {digest}
    assert template_digest(job(workers={"replicas": 8}), DEFAULTS) == digest
    assert template_digest(job(trainer={"args": ["--lr=2"]}), DEFAULTS) != digest


def test_an_event_is_cut_to_what_the_api_takes_between_characters():
    event = build_event(job(), Event("Warning", "Broken", "é" * 2000), "digits.1", "pod" * 100, 0.0)
    assert len(event["note"].encode()) <= 1024 and event["note"].endswith("é...")
    assert len(event["reportingInstance"]) <= 128 and event["eventTime"] == "1970-01-01T00:00:00.000000Z"
    assert event["regarding"]["uid"] == "job-1"
