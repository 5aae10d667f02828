"""The client, the cache and the watches against a real API server: what a fake one could not be trusted to get right."""

import asyncio
import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from builders.api_objects import job_body
from builders.cuttable_proxy import CuttableProxy
from kube import Kubectl, eventually
from lepton_operator import constants as c
from lepton_operator.pods import api as api_module
from lepton_operator.pods import listing
from lepton_operator.pods.api import Api, load_configuration
from lepton_operator.pods.cache import JOBS, PODS, Cache
from lepton_operator.pods.client import ClusterSubstrate
from lepton_operator.pods.listing import Listener
from lepton_operator.pods.manifests import PodDefaults
from lepton_operator.substrate import Conflict, Event, Gone, Rejected

IMAGE = "registry.example/none:1"


CRD = Path(__file__).parents[2] / "crds" / f"{c.PLURAL}.{c.GROUP}.yaml"


@pytest.fixture(scope="module")
def crd(kubeconfig):
    kubectl = Kubectl(kubeconfig)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRD))
    eventually(lambda: kubectl.run("get", "ltj", "-n", "default").returncode == 0)


@pytest.fixture
async def api(kubeconfig, crd):
    client = Api(await load_configuration(str(kubeconfig)))
    yield client
    await client.close()


@pytest.fixture
def cache():
    return Cache()


@pytest.fixture
def substrate(api, cache):
    return ClusterSubstrate(api, cache, PodDefaults(image=IMAGE, coordinator="tls://coordinator.test.svc:7443", ca="PEM"), "operator-0")


@pytest.fixture
def job(kubectl, namespace, cache):
    """A job on the API server, as read from it into the cache."""

    def make(name="digits", **spec):
        body = job_body(name=name, namespace=namespace, **spec)
        wanted = {"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": name}, "spec": body["spec"]}
        kubectl("create", "-f", "-", stdin=json.dumps(wanted))
        cache.apply(JOBS, kubectl.get("ltj", name))
        return cache.job(f"{namespace}/{name}")

    return make


@contextlib.asynccontextmanager
async def listening(api, cache, *namespaces):
    seen = []
    listener = Listener(api, cache, namespaces, seen.append, lambda number: seen.append(number), lambda: None)
    task = asyncio.create_task(listener.run())
    try:
        async with asyncio.timeout(30):
            await listener.primed.wait()
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_worker_is_created_once_and_deleted_only_as_what_was_read(substrate, cache, job):
    wanted = job(workers={"sharedMemory": "64Mi"}, intraJobCommunication=True)
    worker = await substrate.create_worker(wanted, "digits-0-aaaaa", 0)
    assert worker.template and cache.workers(wanted.uid) == [worker]
    assert (await substrate.create_worker(wanted, "digits-0-aaaaa", 0)).uid == worker.uid
    await substrate.ensure_service(wanted)
    with pytest.raises(Conflict):
        await substrate.delete_worker(wanted, _of_another_uid(worker), 0)
    for _ in range(50):  # the scheduler and kubelet write too; a conflict means: read again
        try:
            await substrate.delete_worker(wanted, cache.workers(wanted.uid)[0], 0)
            break
        except Conflict:
            cache.apply(PODS, await substrate._api.request("get", "pods", f"/api/v1/namespaces/{wanted.namespace}/pods/{worker.name}"))
    await until(lambda: not cache.workers(wanted.uid) or cache.workers(wanted.uid)[0].deleting)


def _of_another_uid(worker):
    return replace(worker, uid="00000000-0000-0000-0000-000000000000", resource_version="")


async def test_a_pod_of_our_name_that_is_not_ours_is_left_alone(substrate, kubectl, job):
    spec = {"containers": [{"name": "x", "image": IMAGE}]}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "digits-0-aaaaa"}, "spec": spec})
    with pytest.raises(Rejected, match="does not belong to this job"):
        await substrate.create_worker(job(), "digits-0-aaaaa", 0)
    assert kubectl.get("pod", "digits-0-aaaaa")["spec"]["containers"][0]["name"] == "x"


async def test_a_pod_as_we_build_it_is_admitted_under_restricted_pod_security(substrate, kubectl, namespace, job):
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    await substrate.create_worker(job("own", checkpoint={"claimName": "claim"}), "own-0-aaaaa", 0)
    await substrate.create_worker(job("foreign", trainer={"image": "other:1", "code": {"configMap": "script"}}), "foreign-0-aaaaa", 0)
    root = {"spec": {"securityContext": {"runAsUser": 0}}}
    with pytest.raises(Rejected, match="violates PodSecurity") as refused:
        await substrate.create_worker(job("root", workers={"template": root}), "root-0-aaaaa", 0)
    assert refused.value.reason == "PodSecurityViolated"


async def test_a_quota_is_quoted(substrate, kubectl, job):
    kubectl("create", "quota", "none", "--hard=pods=0")
    with pytest.raises(Rejected, match="exceeded quota: none") as refused:
        await substrate.create_worker(job(), "digits-0-aaaaa", 0)
    assert refused.value.reason == "QuotaExceeded"


async def test_a_missing_service_account_is_named(substrate, job):
    with pytest.raises(Rejected, match="reader") as refused:
        await substrate.create_worker(job(workers={"template": {"spec": {"serviceAccountName": "reader"}}}), "digits-0-aaaaa", 0)
    assert refused.value.reason == "ServiceAccountMissing"


async def test_a_namespace_that_is_not_there_is_a_refusal(substrate, job):
    with pytest.raises(Rejected) as refused:
        await substrate.create_worker(replace(job(), namespace="no-such-namespace"), "digits-0-aaaaa", 0)
    assert refused.value.reason == "NamespaceMissing"


async def test_a_status_is_won_once_and_the_winner_is_in_the_cache(substrate, cache, kubectl, job):
    read = job()
    await substrate.write_status(read, {"state": "Pending", "message": "first"})
    assert cache.job(read.key).status["message"] == "first"
    with pytest.raises(Conflict):
        await substrate.write_status(read, {"state": "Pending", "message": "second"})
    assert kubectl.get("ltj", "digits")["status"]["message"] == "first"
    assert kubectl.get("ltj", "digits")["spec"]["trainer"]["command"] == ["python", "train.py"]
    kubectl("delete", "ltj", "digits")
    with pytest.raises((Gone, Conflict)):
        await substrate.write_status(cache.job(read.key), {"state": "Pending"})


async def test_a_status_of_a_job_made_anew_under_the_name_is_not_written(substrate, kubectl, job, cache, namespace):
    old = job()
    kubectl("delete", "ltj", "digits")
    new = job()
    assert new.uid != old.uid
    with pytest.raises((Gone, Conflict)):
        await substrate.write_status(old, {"state": "Failed"})
    assert "status" not in kubectl.get("ltj", "digits")


async def test_events_are_seen_by_kubectl_describe(substrate, kubectl, job):
    wanted = job()
    await substrate.emit(wanted, Event("Warning", "QuotaExceeded", "no room for worker 1"))
    described = kubectl("describe", "ltj", "digits")
    assert "QuotaExceeded" in described and "no room for worker 1" in described


async def test_lists_are_paged_and_the_watches_bring_the_rest(api, cache, substrate, kubectl, namespace, job, monkeypatch):
    monkeypatch.setattr(api_module, "PAGE", 2)
    monkeypatch.setattr(listing, "RETRY_SECONDS", 1000.0)  # no LIST shall stand in for a watch
    monkeypatch.setattr(listing, "SOON_SECONDS", 1000.0)
    jobs = [job(f"job-{number}") for number in range(5)]
    fresh = Cache()
    async with listening(api, fresh, namespace) as seen:
        assert sorted(fresh.keys()) == sorted(one.key for one in jobs)
        worker = await substrate.create_worker(jobs[0], "job-0-0-aaaaa", 0)
        await until(lambda: fresh.workers(jobs[0].uid))
        assert fresh.workers(jobs[0].uid)[0].uid == worker.uid
        kubectl("delete", "ltj", "job-1")
        await until(lambda: fresh.job(jobs[1].key) is None)
        assert 1 in seen and frozenset({jobs[0].key}) in seen
        kubectl("patch", "ltj", "job-2", "--type=merge", "-p", '{"spec":{"workers":{"replicas":3}}}')
        await until(lambda: fresh.job(jobs[2].key).workers.replicas == 3)


async def test_listening_writes_nothing_to_the_cluster(api, kubectl, namespace, job):
    job()
    before = kubectl.get("ltj", "digits")["metadata"]
    fresh = Cache()
    async with listening(api, fresh, namespace):
        kubectl("annotate", "ltj", "digits", "note=x")
        await until(lambda: fresh.job(f"{namespace}/digits").resource_version != before["resourceVersion"])
    after = kubectl.get("ltj", "digits")["metadata"]
    assert "finalizers" not in after and list(after["annotations"]) == ["note"]
    assert int(after["resourceVersion"]) > int(before["resourceVersion"])
    assert kubectl.get("events")["items"] == []


async def test_what_happens_while_the_api_server_is_away_is_known_soon_after(
    kubeconfig, crd, kubectl, namespace, job, tmp_path, monkeypatch
):
    """Every connection is cut, a job goes and another comes, and the network returns: the cache is right without waiting for its turn."""
    monkeypatch.setattr(listing, "RETRY_SECONDS", 0.1)
    plain = yaml.safe_load(kubeconfig.read_text())
    cluster = plain["clusters"][0]["cluster"]
    url = urlsplit(cluster["server"])
    gone = job("gone")
    async with CuttableProxy(url.hostname, url.port) as proxy:
        cluster |= {"server": f"https://127.0.0.1:{proxy.port}"}
        proxied = tmp_path / "kubeconfig"
        proxied.write_text(yaml.safe_dump(plain))
        api, fresh = Api(await load_configuration(str(proxied))), Cache()
        async with listening(api, fresh, namespace):
            assert fresh.keys() == [gone.key]
            proxy.cut()
            await asyncio.to_thread(kubectl, "delete", "ltj", "gone")
            await asyncio.to_thread(job, "came")
            await asyncio.sleep(1.5)
            assert fresh.keys() == [gone.key]
            proxy.mend()
            await until(lambda: fresh.keys() == [f"{namespace}/came"])
        await api.close()


async def test_a_namespace_that_goes_costs_the_other_nothing(kubeconfig, api, kubectl, namespace, job, monkeypatch):
    """B16: nothing of ours keeps a namespace from going, and the other one is served on."""
    admin = Kubectl(kubeconfig)
    other = f"{namespace}-b"
    admin("create", "namespace", other)
    try:
        body = job_body(name="digits", namespace=other)
        wanted = {"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "digits", "namespace": other}, "spec": body["spec"]}
        job()
        fresh = Cache()
        async with listening(api, fresh, namespace, other):
            began = time.monotonic()
            await asyncio.to_thread(admin, "delete", "namespace", namespace, timeout=60)
            assert time.monotonic() - began < 60
            await until(lambda: fresh.keys() == [])
            await asyncio.to_thread(admin, "create", "-f", "-", stdin=json.dumps(wanted))
            await until(lambda: fresh.keys() == [f"{other}/digits"])
    finally:
        admin("delete", "namespace", other, "--wait=false")
        admin("create", "namespace", namespace)  # the fixture takes it away again
