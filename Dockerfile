# Two images from one file. Each base brings an interpreter (the trainer's also torch); we add the locked dependencies and, last, our code,
# so that a change of our code makes one small layer. Bases are arguments: where no registry can be reached, `cluster/bases.py` makes them.
ARG OPERATOR_BASE=python:3.13-slim
ARG TRAINER_BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime

# A virtual environment that sees what the base brings. `-m venv` needs ensurepip, which some bases leave out: then the base's own pip serves.
FROM ${OPERATOR_BASE} AS operator
ENV PATH=/opt/lepton/venv/bin:$PATH HOME=/home/lepton USER=lepton PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY requirements/operator.lock /opt/lepton/requirements.lock
RUN (python3 -m venv /opt/lepton/venv || python3 -m venv --clear --without-pip --system-site-packages /opt/lepton/venv) \
 && python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r /opt/lepton/requirements.lock \
 && (python -m pip uninstall --yes pip || true) \
 && python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'lepton.pth').write_text('/opt/lepton/app\n')" \
 && printf '#!/opt/lepton/venv/bin/python\nfrom lepton_operator.__main__ import main\nraise SystemExit(main())\n' > /opt/lepton/venv/bin/lepton-operator \
 && chmod 0755 /opt/lepton/venv/bin/lepton-operator \
 && (grep -q '^lepton:' /etc/passwd || echo 'lepton:x:65532:65532::/home/lepton:/usr/sbin/nologin' >> /etc/passwd) \
 && install -d -o 65532 -g 65532 /home/lepton
COPY trainer_image/lepton_trainer/*.py /opt/lepton/app/lepton_trainer/
COPY trainer_image/lepton_trainer/protocol /opt/lepton/app/lepton_trainer/protocol/
COPY trainer_image/lepton_trainer/agent /opt/lepton/app/lepton_trainer/agent/
COPY crds /opt/lepton/app/lepton_operator/crds/
COPY operator/lepton_operator /opt/lepton/app/lepton_operator/
# The user may not write here, so the bytecode is made now; checked by nothing, because nothing changes it.
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/lepton/app
USER 65532:65532
WORKDIR /home/lepton
ENTRYPOINT ["lepton-operator"]

FROM ${TRAINER_BASE} AS trainer
ENV PATH=/opt/lepton/venv/bin:$PATH HOME=/home/lepton USER=lepton PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY requirements/trainer.lock /opt/lepton/requirements.lock
RUN (python3 -m venv --system-site-packages /opt/lepton/venv || python3 -m venv --clear --without-pip --system-site-packages /opt/lepton/venv) \
 && python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r /opt/lepton/requirements.lock \
 && (python -m pip uninstall --yes pip || true) \
 && python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'lepton.pth').write_text('/opt/lepton/app\n')" \
 && (grep -q '^lepton:' /etc/passwd || echo 'lepton:x:65532:65532::/home/lepton:/usr/sbin/nologin' >> /etc/passwd) \
 && install -d -o 65532 -g 65532 /home/lepton
# A torch built without libuv (Debian's) refuses its own default store: then every Python here asks for the other one.
RUN python -c "from torch.distributed import TCPStore; TCPStore('localhost', 0, is_master=True, wait_for_workers=False)" 2> /dev/null \
 || echo 'import os; os.environ.setdefault("USE_LIBUV", "0")' > "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libuv.pth"
COPY trainer_image/lepton_trainer /opt/lepton/app/lepton_trainer/
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/lepton/app
# A job that names no image finds the examples in its working directory.
COPY examples/*.py /opt/lepton/examples/
USER 65532:65532
WORKDIR /opt/lepton/examples
ENTRYPOINT ["python", "-m", "lepton_trainer.agent"]
