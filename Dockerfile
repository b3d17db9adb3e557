# MinT's two images: `control` runs the operator or the gateway (no torch), `engine` runs the engine.
#   docker build --target control --tag mint/control:dev .
#   docker build --target engine  --tag mint/engine:dev .
# PyPI's torch carries CUDA; pass --build-arg PIP_EXTRA_INDEX_URL=... to take a smaller build from elsewhere.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL}
WORKDIR /src
RUN python3 -m venv /opt/mint
COPY pyproject.toml constraints.txt README.md hatch_build.py ./
# Empty packages are enough to install the dependencies, so that a change of the sources reuses their layer.
RUN for package in operator/mint_operator engine/mint_engine engine/mint_gateway protos/mint_contracts; do \
      mkdir -p "$package" && touch "$package/__init__.py"; done

FROM build AS build-control
RUN /opt/mint/bin/pip install --constraint constraints.txt '.[operator,gateway]'
COPY operator operator
COPY engine engine
COPY protos protos
RUN /opt/mint/bin/pip install --no-deps --force-reinstall .

FROM build AS build-engine
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN /opt/mint/bin/pip install --constraint constraints.txt '.[engine]'
COPY operator operator
COPY engine engine
COPY protos protos
RUN /opt/mint/bin/pip install --no-deps --force-reinstall .

FROM ${PYTHON} AS runtime
ENV PATH=/opt/mint/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /

FROM runtime AS control
COPY --from=build-control /opt/mint /opt/mint

FROM runtime AS engine
COPY --from=build-engine /opt/mint /opt/mint
