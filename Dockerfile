# MinT's two images: `control` runs the operator or the gateway (no torch), `engine` runs the engine.
#   make images                    # or, for one: docker build --target engine --tag mint/engine:dev .
# PyPI's torch carries CUDA; pass --build-arg PIP_EXTRA_INDEX_URL=... to take a smaller build from elsewhere.
ARG PYTHON=python:3.11-slim-bookworm

# pip has a place of its own, so that no image gets it.
FROM ${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    PIP_PYTHON=/opt/mint/bin/python
WORKDIR /src
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/mint

# Dependencies alone: what is built around empty packages goes again. A change of the sources leaves their layers, which
# are nearly all of an image, as they were: in builds, in registries and on nodes.
FROM build AS dependencies
COPY pyproject.toml constraints.txt hatch_build.py ./
RUN touch README.md LICENSE && \
    for package in operator/mint_operator engine/mint_engine engine/mint_gateway protos/mint_contracts; do \
      mkdir -p "$package" && touch "$package/__init__.py"; done

FROM dependencies AS control-dependencies
RUN /opt/pip/bin/pip install --constraint constraints.txt '.[operator,gateway]' && \
    /opt/pip/bin/pip uninstall --yes mint-kubernetes

FROM dependencies AS engine-dependencies
RUN /opt/pip/bin/pip install --constraint constraints.txt '.[engine]' && \
    /opt/pip/bin/pip uninstall --yes mint-kubernetes

# MinT itself, with the engine's kernels compiled.
FROM build AS mint
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . .
RUN /opt/pip/bin/pip install --no-deps --no-warn-script-location --root /made .

FROM ${PYTHON} AS runtime
ENV PATH=/opt/mint/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Some libraries ask for the user's name.
RUN echo 'mint:x:65532:65532:mint:/tmp:/usr/sbin/nologin' >> /etc/passwd && echo 'mint:x:65532:' >> /etc/group
USER 65532:65532
WORKDIR /

FROM runtime AS control
COPY --from=control-dependencies /opt/mint /opt/mint
COPY --from=mint /made/opt/mint /opt/mint

FROM runtime AS engine
# Where GKE mounts a node's driver. It runs no hook of NVIDIA's, which elsewhere has the loader find libcuda by itself.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64
# On GPUs, Triton compiles MinT's kernels and a few lines of C of its own.
USER root
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 65532:65532
COPY --from=engine-dependencies /opt/mint /opt/mint
COPY --from=mint /made/opt/mint /opt/mint
