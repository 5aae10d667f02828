"""`make demo`: from a bare machine to a group that loses worker 0 and goes on; everything real, each step timed.

Cluster, images, Helm, a job and its live table, a deletion in the middle, what Prometheus knows, the accuracy, and what to type next.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cluster import gotools, images, prometheus, substrate
from cluster.terminal import Refused, say, step
from demo.digits import NotThere, accuracy, samples_lost

CHECKOUT = Path(__file__).parents[1]
NAMESPACE = "lepton-demo"
RELEASE, RELEASE_NAMESPACE = "lepton", "lepton-system"
JOB = "digits"
KILL_AT = 300
"""Steps into the training."""
Json = dict[str, Any]


def main() -> int:
    try:
        return _demo()
    except (Refused, NotThere, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        say(f"\ndemo: {said}\nWithout a cluster: make demo-local")
        return 1


def _demo() -> int:
    if not substrate.answers():
        say("A Kubernetes on this machine (the first time it is compiled: about ten minutes)")
        substrate.up()
    names = images.load()
    with step("Prometheus, finding pods by itself"):
        metrics = prometheus.start()
    with step("helm upgrade --install lepton charts/lepton-operator"):
        _install(names)
    with step("kubectl apply -f examples/digits.yaml"):
        _kubectl("delete", "ltj", JOB, "--ignore-not-found", "--wait=true")
        _kubectl("delete", "pvc", JOB, "--ignore-not-found", "--wait=true")
        applied = time.monotonic()
        _kubectl("apply", "-f", str(CHECKOUT / "examples" / "digits.yaml"))
    with step("two workers train", long=True) as notes:
        _watch(lambda job: _progress(job) >= KILL_AT)
        notes.append(f"first step {_job()['status']['startup']['firstStepSeconds']:.1f} s after apply")
    victim = _worker(0)
    with step(f"kubectl delete pod {victim} (worker 0, in the middle)", long=True) as notes:
        _kubectl("delete", "pod", victim, "--wait=false")
        deleted = time.monotonic()
        _watch(lambda job: job["status"].get("goodput", {}).get("recoveries", 0) >= 1, timeout=60)
        goodput = _job()["status"]["goodput"]
        notes.append(f"seen {time.monotonic() - deleted:.1f} s after the deletion")
    say(f"     the others stepped again after   {goodput['meanRecoverySeconds']:.2f} s")
    say(f"     samples lost                     {samples_lost(_logs())}")
    say(f"     samples computed again           {goodput.get('recomputedSamples', 0)}")
    with step("the group is whole again, trains on, and ends", long=True):
        _watch(_finished, timeout=900)
    job = _job()
    if not _condition(job, "Complete"):
        say(f"the job failed: {job['status'].get('message')}")
        return 1
    with step("what Prometheus knows"):
        answers = _ask(metrics)
    for question, answer in answers:
        say(f"     {question:74} {answer}")
    say(f"\n{accuracy(_logs())}; {time.monotonic() - applied:.0f} s from apply to the end")
    say(_NEXT.format(kubeconfig=substrate.kubeconfig(), namespace=NAMESPACE, url=metrics.url))
    return 0


_NEXT = """
Next:
  export KUBECONFIG={kubeconfig}
  kubectl -n {namespace} get ltj digits -o wide
  kubectl -n {namespace} describe ltj digits
  kubectl explain ltj.spec
  open {url}           # Prometheus
  make cluster-down    # leaves nothing behind"""


def _install(names: dict[str, str]) -> None:
    values = [f"image.{target}={name}" for target, name in names.items()]
    command = [str(gotools.tool("helm")), f"--kubeconfig={substrate.kubeconfig()}", "upgrade", "--install", RELEASE]
    command += [str(CHECKOUT / "charts" / "lepton-operator"), f"--namespace={RELEASE_NAMESPACE}", "--create-namespace"]
    command += ["--take-ownership", "--wait", "--timeout=120s", *(part for value in values for part in ("--set", value))]
    _run(command)
    if subprocess.run([*_kubectl_command(), "get", "namespace", NAMESPACE], capture_output=True, check=False).returncode:
        _kubectl("create", "namespace", NAMESPACE)


def _watch(done: Any, timeout: float = 300) -> None:
    """Prints the job's line of `kubectl get` whenever it changes, until `done(job)`."""
    deadline, last, headed = time.monotonic() + timeout, "", False
    while time.monotonic() < deadline:
        heading, line = _kubectl("get", "ltj", JOB).splitlines()[:2]
        if line[: line.rindex(" ")] != last:
            if not headed:
                say(f"     {heading}")
                headed = True
            say(f"     {line}")
            last = line[: line.rindex(" ")]
        job = _job()
        if _finished(job) or (job.get("status") and done(job)):
            return
        time.sleep(0.5)
    raise Refused(f"the job did not get on within {timeout:.0f} s: kubectl -n {NAMESPACE} describe ltj {JOB}")


def _progress(job: Json) -> int:
    return int(job["status"].get("progress", {}).get("step", 0))


def _finished(job: Json) -> bool:
    return _condition(job, "Finished")


def _condition(job: Json, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in job.get("status", {}).get("conditions", ()))


def _ask(metrics: prometheus.Prometheus) -> list[tuple[str, str]]:
    where = f'{{namespace="{NAMESPACE}",job_name="{JOB}"}}'
    questions = {
        f"min by (job_name) (last_over_time(lepton_train_loss{where}[10m]))": "{:.4g}",
        f"max by (job_name) (max_over_time(lepton_train_samples_per_second{where}[10m]))": "{:.0f} samples/s",
        f"max by (job_name) (max_over_time(lepton_train_steps_total{where}[10m]))": "{:.0f} steps by one worker",
    }
    answers = []
    for question, form in questions.items():
        found = metrics.query(question)
        answers.append((question, form.format(found[0][1]) if found else "no answer"))
    return answers


def _logs() -> str:
    return _kubectl("logs", "-l", f"training.lepton.ai/job-name={JOB}", "--tail=-1", "--ignore-errors", "--prefix=false")


def _worker(index: int) -> str:
    labels = f"training.lepton.ai/job-name={JOB},training.lepton.ai/worker-index={index}"
    items = json.loads(_kubectl("get", "pods", "-l", labels, "-o", "json"))["items"]
    return str(next(pod["metadata"]["name"] for pod in items if pod["status"]["phase"] == "Running"))


def _job() -> Json:
    body: Json = json.loads(_kubectl("get", "ltj", JOB, "-o", "json"))
    return body


def _kubectl_command() -> list[str]:
    return [substrate.kubectl_program(), f"--kubeconfig={substrate.kubeconfig()}"]


def _kubectl(*arguments: str) -> str:
    return _run([*_kubectl_command(), f"--namespace={NAMESPACE}", *arguments])


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
