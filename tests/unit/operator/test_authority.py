"""The CA is made once, by whoever leads; what somebody else put there stays; a leaf is new when its day or its CA is over."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from builders.fake_api import status
from lepton_operator.pods.authority import AuthorityError, AuthoritySecret, LeafFiles
from lepton_operator.pods.certificates import new_authority
from lepton_operator.substrate import Gone

NOW = datetime.now(UTC)


def secret(authority=None, version="7", **data):
    if authority is not None:
        data = {"ca.crt": authority.bundle, "ca.key": authority.key}
    encoded = {name.replace("_", "."): base64.b64encode(text.encode()).decode() for name, text in data.items()}
    return 200, {"metadata": {"name": "ca", "resourceVersion": version}, "data": encoded}


@pytest.fixture
def holder(api):
    return AuthoritySecret(api, "lepton", "ca")


async def test_an_empty_secret_is_filled_conditionally(fake, holder):
    fake.answers = [secret(), (200, {})]
    made = await holder.fill()
    (_, _, _), (method, path, patch) = fake.requests
    assert method == "PATCH" and path == "/api/v1/namespaces/lepton/secrets/ca" and patch["metadata"] == {"resourceVersion": "7"}
    assert base64.b64decode(patch["data"]["ca.crt"]).decode() == made.bundle


async def test_what_another_leader_wrote_in_between_is_kept(fake, holder):
    theirs = new_authority(NOW)
    fake.answers = [secret(), status(409, "Conflict", "modified"), secret(theirs)]
    assert await holder.fill() == theirs


async def test_a_ca_that_is_due_is_followed_and_stays_trusted(fake, holder):
    old = new_authority(NOW - timedelta(days=3500))
    fake.answers = [secret(old), (200, {})]
    made = await holder.fill()
    assert made.key != old.key and made.bundle.endswith(old.bundle)


async def test_a_standby_reads_and_never_writes(fake, holder):
    fake.answers = [secret()]
    assert await holder.read() is None
    made = new_authority(NOW)
    fake.answers = [secret(made)]
    assert await holder.read() == made
    assert {method for method, _, _ in fake.requests} == {"GET"}


OTHER = new_authority(NOW)


@pytest.mark.parametrize(
    "data",
    [{"ca_crt": "garbage", "ca_key": "garbage"}, {"ca_crt": new_authority(NOW).bundle, "ca_key": OTHER.key}, {"ca_crt": OTHER.bundle}],
)
async def test_what_is_no_ca_is_said_and_not_overwritten(fake, holder, data):
    fake.answers = [secret(**data)]
    with pytest.raises(AuthorityError, match="the Secret lepton/ca holds no CA"):
        await holder.fill()
    assert {method for method, _, _ in fake.requests} == {"GET"}


async def test_a_missing_secret_is_told(fake, holder):
    fake.answers = [status(404, "NotFound", 'secrets "ca" not found')]
    with pytest.raises(Gone):
        await holder.fill()


def test_a_leaf_is_kept_for_a_day_or_until_the_ca_changes_and_only_we_can_read_it():
    leaf = LeafFiles(["c.lepton.svc", "10.0.0.1"])
    first = leaf.renewed(OTHER, NOW)
    assert Path(first.key).stat().st_mode & 0o777 == 0o600 and first.context()
    assert leaf.renewed(OTHER, NOW + timedelta(hours=23)) is None
    second = leaf.renewed(OTHER, NOW + timedelta(hours=25))
    assert second.key != first.key
    assert leaf.renewed(new_authority(NOW), NOW + timedelta(hours=25)) is not None
    leaf.close()
    assert not Path(first.key).exists()


def test_the_key_is_not_part_of_what_is_printed():
    assert OTHER.key not in repr(OTHER) and "PRIVATE" not in repr(OTHER)
