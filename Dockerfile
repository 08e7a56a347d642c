# Two targets: `train` runs notebooks as jobs and has no JupyterLab; `lab` adds it.
#
#   docker build --target train -t medkit:train --build-arg GIT_SHA="$(git rev-parse HEAD)" .
#   docker run --gpus all --shm-size=2g -v "$PWD/runs:/workspace/runs" medkit:train \
#       medkit run notebooks/01_first_training.ipynb -p seed 1
#
# The base is pinned here and nowhere else; `make pin-image` adds its digest. It brings the driver's
# mount points only: torch's wheels carry their own CUDA libraries. Python is the distribution's
# (3.12 on Ubuntu 24.04), which keeps it patched without another source of packages.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${BASE} AS train

# Behind a mirror:  docker build --secret id=pip,src="$HOME/.config/pip/pip.conf" ...
# Another build of torch:  --build-arg TORCH_INDEX=<the index that pytorch.org/get-started names>
ARG TORCH_INDEX=""

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

# torch first, which build of it is the machine's business; then everything else, hashes checked.
# pip is given torch's pin from pyproject.toml, which DL3013 cannot see.
WORKDIR /opt/medkit
COPY pyproject.toml ./
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf,required=false \
    python3 -m venv /opt/venv \
    && torch="$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)" \
    && PIP_CONFIG_FILE=/run/secrets/pip.conf python -m pip install -q \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
COPY locks/train.txt locks/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf,required=false \
    PIP_CONFIG_FILE=/run/secrets/pip.conf python -m pip install -q \
        --no-deps --require-hashes -r locks/train.txt
COPY LICENSE README.md ./
COPY tools/check_torch.py tools/
COPY medkit/ medkit/
RUN python -m pip install -q --no-deps --no-build-isolation . \
    && python tools/check_torch.py \
    && python -m pip check \
    && python -m pip inspect --local > packages.json \
    && rm -rf build ./*.egg-info

# Any user id of group 0 may write here, as OpenShift and many clusters ask.
WORKDIR /workspace
COPY notebooks/ notebooks/
COPY data_samples/ data_samples/
COPY --chmod=0755 container/entrypoint.sh /usr/local/bin/medkit-entrypoint
RUN mkdir -p runs /home/medkit \
    && chown -R 1000:0 /workspace /home/medkit \
    && chmod -R g=u /workspace /home/medkit

# PYTHONHASHSEED and CUBLAS_WORKSPACE_CONFIG must stand before Python starts.
# A user without an entry in /etc/passwd needs HOME and USER.
ENV HOME=/home/medkit \
    USER=medkit \
    PYTHONHASHSEED=0 \
    CUBLAS_WORKSPACE_CONFIG=:4096:8

ARG GIT_SHA=""
ENV MEDKIT_GIT_COMMIT=${GIT_SHA}
LABEL org.opencontainers.image.title="medkit" \
      org.opencontainers.image.description="Medical models that come out the same twice" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${GIT_SHA}"

USER 1000:0
ENTRYPOINT ["/usr/bin/tini", "-g", "--", "/usr/local/bin/medkit-entrypoint"]
CMD ["--help"]


#   docker run --gpus all --shm-size=2g -p 127.0.0.1:8888:8888 -v "$PWD:/workspace/mine" medkit:lab
FROM train AS lab

USER 0:0
WORKDIR /opt/medkit
COPY locks/lab.txt locks/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf,required=false \
    PIP_CONFIG_FILE=/run/secrets/pip.conf python -m pip install -q \
        --no-deps --require-hashes -r locks/lab.txt \
    && python tools/check_torch.py \
    && python -m pip check \
    && python -m pip inspect --local > packages.json

COPY container/jupyter_server_config.json /opt/venv/etc/jupyter/

WORKDIR /workspace
USER 1000:0
EXPOSE 8888
# /api tells the server's version and needs no token.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8888/api', timeout=4)"]
CMD ["lab"]
