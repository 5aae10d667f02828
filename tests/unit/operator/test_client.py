"""The client's writes are conditional or idempotent, and each refusal reaches the user in the refuser's own words."""

import asyncio

import pytest

from builders.api_objects import job, job_body, owner, pod_body
from builders.fake_api import status
from lepton_operator import constants as c
from lepton_operator.pods.api import Api, Expired
from lepton_operator.pods.cache import JOBS, PODS, Cache
from lepton_operator.pods.client import ClusterSubstrate
from lepton_operator.pods.manifests import PodDefaults
from lepton_operator.pods.overlay import LISTS, OBJECTS, TRAINER_LISTS, TRAINER_OBJECTS
from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable


@pytest.fixture
def cache():
    return Cache()


@pytest.fixture
def substrate(api, cache):
    return ClusterSubstrate(api, cache, PodDefaults(image="trainer:1", coordinator="tls://c:7443"), "operator-0")


def created(seen):
    """What the server makes of the pod that it was sent."""
    meta = seen["body"]["metadata"] | {"uid": "pod-0", "resourceVersion": "200", "creationTimestamp": "2026-11-25T03:00:01Z"}
    return 201, seen["body"] | {"metadata": meta, "status": {"phase": "Pending"}}


async def test_a_created_worker_is_in_the_cache_before_the_call_returns(fake, substrate, cache):
    fake.answers = [created]
    worker = await substrate.create_worker(job(), "digits-0-aaaaa", 0)
    assert (worker.uid, worker.index, worker.phase) == ("pod-0", 0, "Pending")
    assert cache.workers("job-1") == [worker] and worker.template


async def test_a_mistyped_field_of_a_template_is_not_dropped_without_a_word(fake, substrate):
    unknown = 'Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.nodeSelectors"'
    fake.answers = [status(400, "BadRequest", unknown)]
    with pytest.raises(Rejected) as refused:
        await substrate.create_worker(job(workers={"template": {"spec": {"nodeSelectors": {}}}}), "digits-0-aaaaa", 0)
    assert (refused.value.reason, refused.value.message) == ("Invalid", unknown)
    ((method, path, _),) = fake.requests
    assert method == "POST" and path.endswith("/pods?fieldValidation=Strict")


async def test_a_variable_of_ours_in_the_template_is_reported(fake, substrate):
    fake.answers = [created]
    template = {"spec": {"containers": [{"name": "trainer", "env": [{"name": "RANK", "value": "7"}]}]}}
    await substrate.create_worker(job(workers={"template": template}), "digits-0-aaaaa", 0)
    async with asyncio.timeout(5):
        while len(fake.requests) < 2:  # noqa: ASYNC110 - it is told in the background
            await asyncio.sleep(0.005)
    _, (_, path, event) = fake.requests
    assert path.startswith("/apis/events.k8s.io/v1/") and event["reason"] == "EnvironmentIgnored" and "RANK" in event["note"]


async def test_a_create_that_arrived_before_counts_as_success(fake, substrate, cache):
    fake.answers = [status(409, "AlreadyExists", 'pods "digits-0-aaaaa" already exists'), (200, pod_body())]
    assert (await substrate.create_worker(job(), "digits-0-aaaaa", 0)).uid == "pod-0"
    assert cache.workers("job-1")


@pytest.mark.parametrize("owners", [[], [owner(uid="job-of-before")]])
async def test_a_foreign_pod_of_our_name_is_never_adopted(fake, substrate, cache, owners):
    fake.answers = [status(409, "AlreadyExists", "exists"), (200, pod_body(owners=owners))]
    with pytest.raises(Rejected) as refused:
        await substrate.create_worker(job(), "digits-0-aaaaa", 0)
    assert refused.value.reason == "NameConflict" and "digits-0-aaaaa" in refused.value.message
    assert cache.workers("job-1") == []
    assert [method for method, _, _ in fake.requests] == ["POST", "GET"]


def wrong_shapes(lists, objects):
    """What YAML easily becomes in the place of a list or an object; the CRD does not look into a pod template."""
    instead = [(field, value) for field in lists for value in ("text", 3, True, ["a"], [["a"]], {"name": "a"})]
    return instead + [(field, value) for field in objects for value in ("text", 3, True, ["a"], [{}])]


async def refused_template(fake, substrate, spec):
    odd = job(workers={"template": {"spec": spec}, "resources": {"limits": {"nvidia.com/gpu": 1}}})
    with pytest.raises(Rejected) as refused:
        await substrate.create_worker(odd, "digits-0-aaaaa", 0)
    assert refused.value.reason == "Invalid" and fake.requests == []
    return refused.value.message


@pytest.mark.parametrize(("field", "value"), wrong_shapes(LISTS, OBJECTS), ids=str)
async def test_a_template_of_the_wrong_shape_is_refused_with_its_path(fake, substrate, field, value):
    message = await refused_template(fake, substrate, {field: value})
    assert message.startswith(f"spec.workers.template.spec.{field} must be ")


@pytest.mark.parametrize(("field", "value"), wrong_shapes(TRAINER_LISTS, TRAINER_OBJECTS), ids=str)
async def test_so_is_one_whose_trainer_container_has_the_wrong_shape(fake, substrate, field, value):
    containers = [{"name": "side", "image": "x"}, {"name": "trainer", field: value}]
    message = await refused_template(fake, substrate, {"containers": containers})
    assert message.startswith(f"spec.workers.template.spec.containers[1].{field} must be ")


async def test_a_template_of_nulls_takes_nothing_away_that_is_ours(fake, substrate):
    fake.answers = [created]
    trainer = {"name": "trainer"} | dict.fromkeys([*TRAINER_LISTS, *TRAINER_OBJECTS])
    spec = dict.fromkeys([*LISTS, *OBJECTS]) | {"containers": [trainer]}
    worker = await substrate.create_worker(job(workers={"template": {"spec": spec}}), "digits-0-aaaaa", 0)
    assert worker.uid == "pod-0"


QUOTA = 'pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1'

NO_RIGHT = (
    'pods is forbidden: User "system:serviceaccount:lepton:operator" cannot create resource "pods" in API group "" in the namespace "team"'
)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(403, "Forbidden", QUOTA), "QuotaExceeded"),
        (status(403, "Forbidden", 'pods "x" is forbidden: failed quota: q: must specify cpu'), "QuotaExceeded"),
        (
            status(403, "Forbidden", 'pods "x" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi'),
            "LimitRangeViolated",
        ),
        (status(403, "Forbidden", 'pods "x" is forbidden: violates PodSecurity "restricted:latest": ...'), "PodSecurityViolated"),
        (status(403, "Forbidden", 'error looking up service account team/x: serviceaccount "x" not found'), "ServiceAccountMissing"),
        (status(403, "Forbidden", 'pods "x" is forbidden: no PriorityClass with name high was found'), "PriorityClassMissing"),
        (status(403, "Forbidden", NO_RIGHT), "Forbidden"),
        (status(403, "Forbidden", 'admission webhook "w" denied the request: this team cannot use GPUs'), "AdmissionDenied"),
        (status(403, "Forbidden", "unable to create", causes=[{"reason": "NamespaceTerminating"}]), "NamespaceTerminating"),
        (status(422, "Invalid", 'Pod "x" is invalid: spec.containers[0].image: Required value'), "Invalid"),
        (status(422, "Invalid", 'Pod "x" is invalid: spec.hostUsers: Forbidden: cannot be set with hostNetwork'), "Invalid"),
        (status(400, "BadRequest", 'Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal string'), "Invalid"),
        (status(400, "BadRequest", 'admission webhook "policy" denied the request: no'), "AdmissionDenied"),
        (status(404, "NotFound", 'namespaces "team" not found'), "NamespaceMissing"),
    ],
)
async def test_a_refusal_has_a_reason_and_the_refusers_words(fake, substrate, answer, reason):
    fake.answers = [answer]
    with pytest.raises(Rejected) as refused:
        await substrate.create_worker(job(), "x", 0)
    assert refused.value.reason == reason and refused.value.message == answer[1]["message"]


@pytest.mark.parametrize("code", [401, 429, 500, 503, 504])
async def test_a_server_that_cannot_answer_is_tried_again(fake, substrate, code):
    fake.answers = [(code, {"message": "busy"}, {"Retry-After": "7"})]
    with pytest.raises(Unavailable) as later:
        await substrate.create_worker(job(), "x", 0)
    assert later.value.retry_after == 7.0


async def test_a_server_that_is_not_there_is_unavailable(fake, api):
    fake.configuration.host = "http://127.0.0.1:1"
    with pytest.raises(Unavailable):
        await api.request("get", "pods", "/x")


async def test_a_server_that_says_nothing_is_given_up(fake, api):
    async def silence(_):
        await asyncio.sleep(0.3)

    fake.answers = [silence]
    with pytest.raises(Unavailable, match=r"did not answer"):
        await api.request("get", "pods", "/x", timeout=0.05)


async def test_a_kept_connection_that_was_closed_is_no_error(fake, api):
    def cut(seen):
        seen["request"].transport.close()
        return 200, {}

    fake.answers = [(200, {}), cut, (200, {"answer": 1})]
    await api.request("get", "pods", "/x")
    assert await api.request("get", "pods", "/x") == {"answer": 1}


async def test_text_instead_of_json_is_a_message(fake, api):
    async def text(_):
        return 502, "<html>"

    fake.answers = [text]
    with pytest.raises(Unavailable):
        await api.request("get", "pods", "/x")


async def test_status_is_written_for_the_version_that_was_read_and_enters_the_cache(fake, substrate, cache):
    cache.apply(JOBS, job_body(version=100))
    fake.answers = [(200, job_body(version=101) | {"status": {"state": "Running"}})]
    await substrate.write_status(cache.job("team/digits"), {"state": "Running"})
    ((method, path, body),) = fake.requests
    assert method == "PUT" and path.endswith("/leptontrainingjobs/digits/status")
    assert body["metadata"] == {"name": "digits", "namespace": "team", "uid": "job-1", "resourceVersion": "100"}
    assert cache.job("team/digits").status == {"state": "Running"} and cache.job("team/digits").resource_version == "101"


@pytest.mark.parametrize(
    ("answer", "error"), [(status(409, "Conflict", "the object has been modified"), Conflict), (status(404, "NotFound", "not found"), Gone)]
)
async def test_a_status_that_lost_the_race_is_no_failure(fake, substrate, answer, error):
    fake.answers = [answer]
    with pytest.raises(error):
        await substrate.write_status(job(), {})


async def test_after_a_conflict_the_newest_is_known_before_the_next_plan(fake, substrate, cache):
    cache.apply(JOBS, job_body(version=100))
    cache.apply(PODS, pod_body(version=200))
    fake.answers = [status(409, "Conflict", "modified"), (200, job_body(version=105))]
    with pytest.raises(Conflict):
        await substrate.write_status(cache.job("team/digits"), {})
    assert cache.job("team/digits").resource_version == "105"
    fake.answers = [status(409, "Conflict", "modified"), (200, pod_body(version=207))]
    with pytest.raises(Conflict):
        await substrate.delete_worker(job(), cache.workers("job-1")[0], 0)
    assert cache.workers("job-1")[0].resource_version == "207"


async def test_a_delete_carries_uid_and_version_and_its_answer_enters_the_cache(fake, substrate, cache):
    cache.apply(PODS, pod_body(version=200))
    going = pod_body(version=201)
    going["metadata"]["deletionTimestamp"] = "2026-11-25T03:01:00Z"
    fake.answers = [(200, going)]
    (worker,) = cache.workers("job-1")
    await substrate.delete_worker(job(), worker, 5.9)
    ((method, path, body),) = fake.requests
    assert method == "DELETE" and path.endswith("/pods/digits-0-aaaaa")
    assert body["preconditions"] == {"uid": "pod-0", "resourceVersion": "200"} and body["gracePeriodSeconds"] == 5
    assert cache.workers("job-1")[0].deleting


async def test_a_pod_that_is_removed_at_once_leaves_the_cache(fake, substrate, cache):
    cache.apply(PODS, pod_body())
    fake.answers = [(200, pod_body())]
    await substrate.delete_worker(job(), cache.workers("job-1")[0], 0)
    assert cache.workers("job-1") == []


async def test_the_service_is_made_once_and_a_foreign_one_is_left_alone(fake, substrate):
    fake.answers = [(201, {})]
    asking = job(intraJobCommunication=True)
    await substrate.ensure_service(asking)
    await substrate.ensure_service(asking)
    assert len(fake.requests) == 1
    fake.answers = [status(409, "AlreadyExists", "exists"), (200, {"metadata": {"name": "digits"}})]
    with pytest.raises(Rejected, match="does not belong to this job"):
        await substrate.ensure_service(job(uid="job-2", intraJobCommunication=True))


async def test_a_list_is_paged_and_an_expired_page_is_told(fake, api):
    fake.answers = [
        (200, {"metadata": {"resourceVersion": "9", "continue": "next"}, "items": [{"a": 1}]}),
        (200, {"metadata": {"resourceVersion": "9"}, "items": [{"a": 2}]}),
    ]
    pages = [page async for page in api.pages("pods", "/api/v1/pods", "app=x")]
    assert pages == [([{"a": 1}], "9"), ([{"a": 2}], "9")]
    assert fake.requests[0][1] == "/api/v1/pods?limit=500&labelSelector=app%3Dx" and "continue=next" in fake.requests[1][1]
    fake.answers = [status(410, "Expired", "too old")]
    with pytest.raises(Expired):
        await anext(api.pages("pods", "/api/v1/pods"))


async def test_requests_beyond_the_burst_wait_their_turn(fake):
    fake.answers = [(200, {})]
    seen = []
    api = Api(fake.configuration, qps=50, burst=5, observe=lambda verb, resource, code, seconds: seen.append((verb, resource, code)))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(api.request("get", "pods", "/x") for _ in range(15)))
    assert loop.time() - began >= 0.19
    assert seen == [("get", "pods", "200")] * 15
    await api.close()


async def test_a_new_ca_is_told_to_the_workers_of_this_installation_alone(fake, substrate, cache):
    for name, manager in (("mine", "lepton/one"), ("theirs", "elsewhere/two"), ("unclaimed", "")):
        cache.apply(JOBS, job_body(name=name, uid=f"job-{name}") | {"status": {"manager": manager}})
        cache.apply(PODS, pod_body(name=f"{name}-0-aaaaa", uid=f"pod-{name}", owners=[owner(uid=f"job-{name}", name=name)]))
    fake.answers = [(200, pod_body(name="mine-0-aaaaa", uid="pod-mine", version=300, owners=[owner(uid="job-mine", name="mine")]))]
    assert await substrate.introduce("a CA", "lepton/one") == 1
    ((method, path, _),) = fake.requests
    assert method == "PATCH" and path.endswith("/pods/mine-0-aaaaa")


async def test_the_workers_of_a_job_that_was_taken_over_are_told_where_its_coordinator_is_now(fake, substrate, cache):
    def made_by(address, version):
        pod = pod_body(name="digits-0-aaaaa", version=version)
        pod["metadata"]["annotations"] |= {c.ANNOTATION_CA: "a CA"} | ({c.ANNOTATION_COORDINATOR: address} if address else {})
        return pod

    here = substrate.defaults.coordinator
    cache.apply(JOBS, job_body() | {"status": {"manager": "lepton/one"}})
    cache.apply(PODS, made_by("tls://gone.elsewhere.svc:7443", 200))
    fake.answers = [(200, made_by(here, 300))]
    assert await substrate.introduce("a CA", "lepton/one") == 1
    ((_, _, patch),) = fake.requests
    assert patch["metadata"]["annotations"] == {c.ANNOTATION_CA: "a CA", c.ANNOTATION_COORDINATOR: here}
    assert await substrate.introduce("a CA", "lepton/one") == 0, "what it knows costs nothing"
    cache.apply(PODS, made_by("", 400))
    assert await substrate.introduce("a CA", "lepton/one") == 0, "a pod of an older operator reads no such file"


async def test_a_pod_that_is_gone_when_it_is_deleted_leaves_the_cache(fake, substrate, cache):
    cache.apply(PODS, pod_body())
    fake.answers = [status(404, "NotFound", "not found")]
    with pytest.raises(Gone):
        await substrate.delete_worker(job(), cache.workers("job-1")[0], 0)
    assert cache.workers("job-1") == []


async def test_who_does_not_lead_any_more_writes_nothing_but_reads_and_reviews_tokens(fake, api):
    fake.answers = [(200, {})]
    api.may_write = lambda: False
    for verb in ("create", "update", "patch", "delete"):
        with pytest.raises(Unavailable, match="not leading"):
            await api.request(verb, "pods", "/x")
    assert fake.requests == []
    await api.request("get", "pods", "/x")
    await api.request("create", "tokenreviews", "/x", body={})
    assert [method for method, _, _ in fake.requests] == ["GET", "POST"]
