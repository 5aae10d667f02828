"""Training jobs as tests see them: small scripts from a ConfigMap, watched through kubectl, their ledger read from the shared claim."""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from installation import Installation
from kube import Kubectl, Object, eventually

API_VERSION = "training.lepton.ai/v1alpha1"
CLAIM = "shared"
SCRIPTS = "scripts"
WINDOW = "window"
"""A pod that sees the shared claim, so that tests do."""
BATCH = 12
"""Samples per step of scripts/group.py."""


def window(image: str) -> list[Object]:
    """The shared claim, and the pod through which it is looked at."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "window",
        "image": image,
        "command": ["sleep", "86400"],
        "volumeMounts": [{"name": "claim", "mountPath": "/checkpoints"}],
        "securityContext": security,
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": WINDOW},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [container],
                "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": CLAIM}}],
            },
        },
    ]


def has_ended(pod: Object) -> bool:
    """Whether nothing of the training runs in it: the pod's own phase follows its trainer container a moment later."""
    states = [status.get("state", {}) for status in pod["status"].get("containerStatuses", ()) if status["name"] == "trainer"]
    return pod["status"].get("phase") in ("Succeeded", "Failed") or any("terminated" in state for state in states)


@dataclass
class Ledger:
    """What every rank of every generation noted: where it began, and the samples that it took for each step, before the step was made."""

    generations: dict[int, dict[int, list[dict[str, Any]]]]  # generation -> rank -> lines, the first the rank's start
    final: int  # the step of the last checkpoint

    def starts(self) -> dict[int, int]:
        """Generation -> the step that it resumed from."""
        return {number: next(iter(ranks.values()))[0]["start"] for number, ranks in sorted(self.generations.items())}

    def worlds(self) -> list[int]:
        """The world size of each generation that stepped, in order."""
        return [next(iter(ranks.values()))[0]["world"] for _, ranks in sorted(self.generations.items())]

    def rank(self, number: int) -> dict[str, Any]:
        """The first line of a rank of the newest generation: start, world, pid (as its container sees it), worker (its pod)."""
        return self.generations[max(self.generations)][number][0]

    def step(self) -> int:
        """The highest step that any rank began."""
        return max((line["step"] for ranks in self.generations.values() for lines in ranks.values() for line in lines[1:]), default=0)

    def recomputed(self) -> int:
        """Steps that a later generation made again."""
        starts = self.starts()
        again = 0
        for number, ranks in self.generations.items():
            later = [start for other, start in starts.items() if other > number]
            made = max((line["step"] for lines in ranks.values() for line in lines[1:]), default=starts[number])
            again += max(0, made - later[0]) if later else 0
        return again

    def check_committed_once(self) -> None:
        """Every step up to the last checkpoint was committed by one generation, its samples taken once by its ranks together."""
        starts = self.starts()
        numbers = sorted(starts)
        assert starts[numbers[0]] == 0, f"the first generation began at {starts[numbers[0]]}"
        taken: list[int] = []
        for number, after in zip(numbers, [*numbers[1:], None], strict=True):
            end = self.final if after is None else starts[after]
            assert end >= starts[number], f"generation {after} resumed at {end}, before generation {number} began"
            ranks = self.generations[number]
            by_step: dict[int, list[int]] = {}
            for lines in ranks.values():
                for line in lines[1:]:
                    by_step.setdefault(line["step"], []).extend(line["samples"])
            for step in range(starts[number] + 1, end + 1):
                assert sorted(by_step.get(step, [])) == list(range((step - 1) * BATCH, step * BATCH)), f"generation {number}, step {step}"
                taken += by_step[step]
        assert sorted(taken) == list(range(self.final * BATCH))


@dataclass
class Training:
    """One job."""

    kubectl: Kubectl
    name: str

    def body(self) -> Object:
        return self.kubectl.get("ltj", self.name)

    def status(self) -> Object:
        return self.body().get("status") or {}

    def condition(self, kind: str) -> Object:
        """The condition of this type; empty where there is none."""
        return next((c for c in self.status().get("conditions", ()) if c["type"] == kind), {})

    def pods(self, *, ended: bool = True) -> list[Object]:
        """Its pods by index; those being deleted are left out, and with `ended=False` those that have ended."""
        items = self.kubectl.get("pods", "-l", f"training.lepton.ai/job-name={self.name}")["items"]
        mine = [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]
        if not ended:
            mine = [pod for pod in mine if not has_ended(pod)]
        return sorted(mine, key=lambda pod: int(pod["metadata"]["labels"]["training.lepton.ai/worker-index"]))

    def agents(self) -> dict[int, tuple[str, str]]:
        """Worker index -> (UID of its living pod, id of its trainer container): the same pair is the same agent process."""
        return {
            int(pod["metadata"]["labels"]["training.lepton.ai/worker-index"]): (
                pod["metadata"]["uid"],
                next((c.get("containerID", "") for c in pod["status"].get("containerStatuses", ()) if c["name"] == "trainer"), ""),
            )
            for pod in self.pods(ended=False)
        }

    def events(self) -> list[Object]:
        uid = self.body()["metadata"]["uid"]
        items: list[Object] = self.kubectl.get("events.events.k8s.io", f"--field-selector=regarding.uid={uid}")["items"]
        return items

    def logs(self, pod: str) -> str:
        return self.kubectl("logs", pod, "-c", "trainer")

    def wait(self, condition: str, timeout: float = 90) -> Object:
        """Waits as a user would; returns the status."""
        if condition == "Finished":
            self.kubectl("wait", f"ltj/{self.name}", "--for=condition=Finished", f"--timeout={timeout:.0f}s", timeout=timeout + 10)
        else:
            eventually(lambda: self.condition(condition).get("status") == "True", timeout)
        return self.status()

    def ledger(self) -> Ledger:
        program = (
            "import json, pathlib, sys\n"
            "folder = pathlib.Path('/checkpoints', sys.argv[1], 'round-0')\n"
            "files = {f.name: f.read_text() for f in folder.glob('ledger/*')}\n"
            "state = folder / 'state.json'\n"
            "print(json.dumps([files, json.loads(state.read_text())['step'] if state.exists() else 0]))\n"
        )
        files, final = json.loads(self.kubectl("exec", WINDOW, "--", "python3", "-c", program, self.name))
        generations: dict[int, dict[int, list[dict[str, Any]]]] = {}
        for name, text in files.items():
            generation, rank = map(int, name.split("-"))
            # The last line of a process that was killed may be cut.
            lines = [json.loads(line) for line in text.split("\n")[:-1]]
            if lines:
                generations.setdefault(generation, {})[rank] = lines
        return Ledger(generations, final)

    def tell(self, word: str) -> None:
        """Leaves a file of this name where the script looks at every step: `finish`, or `fail-RANK`."""
        self.kubectl("exec", WINDOW, "--", "touch", f"/checkpoints/{self.name}/round-0/{word}")

    def step(self) -> int:
        return self.ledger().step()

    def steps_on(self, timeout: float = 60, by: int = 5) -> int:
        """Waits until the group has gone `by` steps beyond where it is now; returns the step reached."""
        begun = self.step()
        return int(eventually(lambda: (step := self.step()) >= begun + by and step, timeout))

    def steps_in_generation(self, number: int, timeout: float = 60) -> Ledger:
        """Waits until generation `number` or a later one has stepped with every rank of its world."""

        def stepped() -> Ledger | None:
            ledger = self.ledger()
            newest = max(ledger.generations, default=0)
            if newest < number:
                return None
            ranks = ledger.generations[newest]
            world = next(iter(ranks.values()))[0]["world"]
            return ledger if len(ranks) == world and all(len(lines) > 3 for lines in ranks.values()) else None

        ledger: Ledger = eventually(stepped, timeout)
        return ledger

    def complete(self, timeout: float = 90) -> Object:
        """Lets the script end, waits for the job's end, and checks what must be true of every job that lived through something."""
        self.tell("finish")
        status = self.wait("Finished", timeout)
        assert status["state"] == "Complete", status.get("message")
        self.ledger().check_committed_once()
        running = [pod["metadata"]["name"] for pod in self.pods(ended=False)]
        assert running == [], f"the job is Finished, and these run: {running}"
        return status

    def kill_rank(self, rank: int) -> None:
        """SIGKILL from inside the container, to the process of this rank in the newest generation."""
        start = self.ledger().rank(rank)
        self.kubectl("exec", start["worker"], "-c", "trainer", "--", "sh", "-c", f"kill -9 {start['pid']}")

    def describe(self) -> str:
        """What helps when a test has failed."""
        parts = [
            self.kubectl.run("get", "ltj", self.name, "-o", "yaml").stdout,
            self.kubectl.run("get", "pods", "-o", "wide", "-l", f"training.lepton.ai/job-name={self.name}").stdout,
            self.kubectl.run("events", "--for", f"ltj/{self.name}").stdout,
        ]
        for pod in self.pods()[:3]:
            parts.append(f"--- {pod['metadata']['name']}\n" + self.kubectl.run("logs", "--tail=25", pod["metadata"]["name"]).stdout)
        return "\n".join(parts)


@dataclass
class Trainings:
    """Makes jobs in one namespace and takes them away again."""

    operator: Installation
    namespace: str
    made: list[Training] = field(default_factory=list)

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.operator.kubeconfig, self.namespace)

    def start(self, name: str, spec: Object, *, exactly: bool = False) -> Training:
        """A job with exactly this spec; unless `exactly`, its name gets a suffix of its own."""
        job = Training(self.kubectl, name if exactly else f"{name}-{secrets.token_hex(2)}")
        body = {"apiVersion": API_VERSION, "kind": "LeptonTrainingJob", "metadata": {"name": job.name}, "spec": spec}
        self.kubectl("create", "-f", "-", stdin=json.dumps(body))
        self.made.append(job)
        return job

    def group(self, name: str, replicas: int = 2, minimum: int = 1, env: dict[str, str] | None = None, **spec: Any) -> Training:
        """A job of scripts/group.py: it trains, and keeps its ledger, until it is told to finish."""
        job_name = f"{name}-{secrets.token_hex(2)}"
        variables = [{"name": key, "value": value} for key, value in (env or {}).items()]
        body = {
            "trainer": {"command": ["python", "group.py"], "code": {"configMap": SCRIPTS}, "env": variables},
            "workers": {"replicas": replicas, "minReplicas": minimum},
            "checkpoint": {"claimName": CLAIM, "path": job_name},
            **spec,
        }
        return self.start(job_name, body, exactly=True)

    def plain(
        self, name: str, script: str, replicas: int = 1, trainer: Object | None = None, *, exactly: bool = False, **spec: Any
    ) -> Training:
        """A job of a script that needs no torch: nothing is imported beforehand."""
        body = {
            "trainer": {
                "command": ["python", "-c", script],
                "env": [{"name": "LEPTON_WARM_START", "value": "0"}],
                **(trainer or {}),
            },
            "workers": {"replicas": replicas},
            **spec,
        }
        return self.start(name, body, exactly=exactly)

    def clear(self) -> None:
        for job in self.made:
            self.kubectl.run("delete", "ltj", job.name, "--wait=false", "--ignore-not-found")
        self.made.clear()

    def describe(self) -> str:
        told = [job.describe() for job in self.made]
        return "\n".join([*told, *(self.operator.log_tail(f"{self.namespace}/{job.name}") for job in self.made)])
