"""The command line is read whole or refused with words; a log line carries the job that it speaks of."""

import json
import logging
import sys

import pytest

from lepton_operator.config import read_config
from lepton_operator.logs import JsonFormatter, TextFormatter

ENVIRONMENT = {"POD_IP": "10.0.0.1", "POD_NAME": "operator-0", "POD_NAMESPACE": "lepton"}
NEEDED = ["--trainer-image=trainer:1"]


def test_what_identifies_an_installation_is_stable_and_complete():
    config = read_config(
        [*NEEDED, "--release-name=one", "--watch-namespace=a", "--watch-namespace=b", "--watch-namespace=a", "--coordinator-service=c"],
        ENVIRONMENT,
    )
    assert config.manager == "lepton/one" and config.watch_namespaces == ("a", "b")
    assert config.coordinator_address == "tls://c.lepton.svc:7443" and config.pod_name == "operator-0"


@pytest.mark.parametrize(
    ("ips", "expected"), [("", ("10.0.0.1",)), ("10.0.0.1", ("10.0.0.1",)), ("10.0.0.1,fd00::1", ("10.0.0.1", "fd00::1"))]
)
def test_a_pod_may_have_an_address_of_each_family(ips, expected):
    assert read_config(NEEDED, ENVIRONMENT | {"POD_IPS": ips}).pod_ips == expected


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], ENVIRONMENT, "--trainer-image is required"),
        (NEEDED, {"POD_IP": "10.0.0.1"}, "--namespace is required"),
        (NEEDED, {"POD_NAMESPACE": "x"}, "POD_IP is required"),
        ([*NEEDED, "--metrics-port=70000"], ENVIRONMENT, "is not a port"),
        ([*NEEDED, "--api-qps=0"], ENVIRONMENT, "not a number above 0"),
        ([*NEEDED, "--workers=0"], ENVIRONMENT, "whole number of at least 1"),
        ([*NEEDED, "--log-format=xml"], ENVIRONMENT, "invalid choice"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(arguments, environment, words, capsys):
    with pytest.raises(SystemExit) as ended:
        read_config(arguments, environment)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def record(message="it %s", *arguments, job=None, error=None):
    made = logging.LogRecord("lepton_operator.x", logging.WARNING, "x.py", 1, message, arguments, error)
    if job:
        made.job = job
    return made


def test_a_json_line_is_one_object_with_the_jobs_key():
    line = JsonFormatter().format(record("it %s\nbroke", "really", job="team/digits"))
    read = json.loads(line)
    assert "\n" not in line and read["message"] == "it really\nbroke"
    assert (read["job"], read["level"], read["logger"]) == ("team/digits", "warning", "lepton_operator.x")


def test_an_exception_stays_in_its_line():
    try:
        raise ValueError("broken")
    except ValueError:
        read = json.loads(JsonFormatter().format(record("failed", error=sys.exc_info())))
    assert "ValueError: broken" in read["exception"]


def test_a_text_line_names_the_job():
    assert "WARNING [team/digits] it broke" in TextFormatter().format(record("it %s", "broke", job="team/digits")).replace("  ", " ")
