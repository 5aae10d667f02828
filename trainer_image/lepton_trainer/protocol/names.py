"""The names that both sides of a worker pod's border use: environment variables, files, ports.

The operator (or local mode) sets them, the agent, `report` and the ranks read them. Standard library only, Python >= 3.9.
"""

# What the agent is told by whoever made its pod (or its process, in local mode).
NAMESPACE = "LEPTON_NAMESPACE"
JOB_NAME = "LEPTON_JOB_NAME"
JOB_UID = "LEPTON_JOB_UID"
WORKER_INDEX = "LEPTON_JOB_WORKER_INDEX"
WORKER_UID = "LEPTON_WORKER_UID"
WORKER_NAME = "LEPTON_WORKER_NAME"
COORDINATOR = "LEPTON_COORDINATOR"
"""`tls://host:port`, `tcp://host:port` (loopback only) or `file:/path`, a file that holds one of the two, read again at each connect."""
TOKEN_FILE = "LEPTON_TOKEN_FILE"
CA_FILE = "LEPTON_CA_FILE"
HOST = "LEPTON_HOST"
"""The address under which the other workers reach this one."""
PROCS = "LEPTON_PROCS_PER_WORKER"
GRACE_SECONDS = "LEPTON_GRACE_SECONDS"
"""The pod's terminationGracePeriodSeconds: the agent keeps its own kill deadline inside it."""
METRICS_PORT = "LEPTON_METRICS_PORT"
"""0: a free port (local mode), written to RUN_DIR/metrics-port."""
RUN_DIR = "LEPTON_RUN_DIR"
"""A private folder of the agent: report files, error files, sockets."""
CHECKPOINT_DIR = "LEPTON_CHECKPOINT_DIR"
"""What `checkpoint_dir()` returns: <volume>/<path>/round-R. Absent: the job keeps no checkpoints."""
ROUND = "LEPTON_ROUND"
"""Which round of training this is, 1, 2, ...: of a job with `evaluation`."""
LOG_PATTERNS = "LEPTON_METRICS_FROM_LOGS"
"""JSON list of {"name", "pattern"}: `metrics.fromLogs` of the job."""
WARM_START = "LEPTON_WARM_START"
"""`0` switches the warm parent off."""
PRELOAD = "LEPTON_PRELOAD"
"""Comma-separated modules for the warm parent, beyond what the script imported last time."""
TERMINATION_LOG = "LEPTON_TERMINATION_LOG"
BUILTIN = "LEPTON_BUILTIN"
"""`trainer.builtin` of the job as JSON: what `python -m lepton_trainer train` runs when no file is named."""
CACHE = "LEPTON_CACHE"
"""Where the built-in trainer keeps prepared data."""

# What a rank is told by its agent, beyond torchrun's own variables.
GENERATION = "LEPTON_GENERATION"
REPORT_FILE = "LEPTON_REPORT_FILE"
"""The memory-mapped file through which a rank reports and is told when to stop."""

# torchrun's variables, which a job's env may not set.
TORCHRUN = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_ERROR_FILE",
)

TOKEN_AUDIENCE = "lepton.ai/coordinator"
COORDINATOR_PORT = 7443
AGENT_METRICS_PORT = 9400
AGENT_DIR = "/opt/lepton-agent"
"""Where a pod whose image is not ours finds the agent that an init container copied; appended last to sys.path.

Not /opt/lepton: a user's image may be made from our trainer image, whose own files lie there."""
