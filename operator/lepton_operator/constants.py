"""Every name that the operator writes into or reads from a cluster: group, labels, annotations, containers, volumes, paths."""

GROUP = "training.lepton.ai"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LeptonTrainingJob"
PLURAL = "leptontrainingjobs"

LABEL_JOB_NAME = f"{GROUP}/job-name"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_WORKER_INDEX = f"{GROUP}/worker-index"
LABEL_APP_NAME = "app.kubernetes.io/name"
LABEL_APP_INSTANCE = "app.kubernetes.io/instance"
LABEL_APP_COMPONENT = "app.kubernetes.io/component"
LABEL_APP_MANAGED_BY = "app.kubernetes.io/managed-by"
APP_NAME = "lepton-training-job"
MANAGED_BY = "lepton-operator"
COMPONENT_WORKER = "worker"
COMPONENT_SERVICE = "workers"
COMPONENT_SERVING = "serving"

ANNOTATION_TEMPLATE = f"{GROUP}/template-digest"
ANNOTATION_CA = f"{GROUP}/coordinator-ca"
"""PEM bundle; the pod reads it through a downwardAPI file, so a change reaches a running agent."""
ANNOTATION_COORDINATOR = f"{GROUP}/coordinator"
"""tls://host:port of the coordinator, read in the same way: another installation that takes the job over writes its own."""

CONTAINER_TRAINER = "trainer"
CONTAINER_AGENT_COPY = "lepton-agent"
VOLUME_AGENT = "lepton-agent"
VOLUME_IDENTITY = "lepton-identity"
VOLUME_HOME = "lepton-home"
VOLUME_SHARED_MEMORY = "lepton-shared-memory"
VOLUME_CHECKPOINTS = "lepton-checkpoints"
VOLUME_CODE = "lepton-code"
OWN_PREFIX = "lepton-"
"""Containers and volumes whose names start so are ours; a template cannot replace them."""

IDENTITY_DIR = "/var/run/secrets/training.lepton.ai"
TOKEN_FILE = f"{IDENTITY_DIR}/token"
CA_FILE = f"{IDENTITY_DIR}/ca.crt"
COORDINATOR_FILE = f"{IDENTITY_DIR}/coordinator"
COPY_DIR = "/lepton-agent"
"""Where the init container sees the volume that the trainer sees at AGENT_DIR; nothing in the trainer image lies there."""
HOME_DIR = "/var/lib/lepton"
CHECKPOINTS_DIR = "/checkpoints"
CODE_DIR = "/workspace"
SHARED_MEMORY_DIR = "/dev/shm"
TERMINATION_LOG = "/dev/termination-log"

TOKEN_SECONDS = 3600
METRICS_PORT_NAME = "metrics"
DEFAULT_GRACE_SECONDS = 30
UNREACHABLE_SECONDS = 30
"""How long a pod tolerates a node that is not ready or unreachable before the cluster evicts it."""
DEFAULT_UID = 65532

REPORTING_CONTROLLER = f"{GROUP}/operator"


def lease_name(release: str) -> str:
    """The Lease of an installation, found by others from what it claims jobs with (`namespace/release`)."""
    return f"{release}.{GROUP}"
