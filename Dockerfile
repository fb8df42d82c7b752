# raypref on Ray, for CPUs (`--target cpu`) and for GPUs (`--target gpu`), from the locks in requirements/.
#
#   docker build --target cpu -t ghcr.io/raypref/raypref:0.1.0-cpu \
#     --build-arg PYTHON_IMAGE=python:3.11.10-slim-bookworm@$(docker buildx imagetools inspect \
#       python:3.11.10-slim-bookworm --format '{{.Manifest.Digest}}') .
#   docker build --target sbom --output sbom .       # -> sbom/{cpu,gpu}.cdx.json: the Python packages, as CycloneDX
#
# The base is an argument: give it with its digest, as above, and everything but Debian's few packages is pinned.
ARG PYTHON_IMAGE=python:3.11.10-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
# Where pip finds the CPU build of torch that requirements/cpu.txt names, if not by itself.
ARG PIP_EXTRA_INDEX_URL=
# Of files in the wheel: the time of the commit, so that equal sources make equal wheels.
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
RUN python -m venv /opt/venv
COPY pyproject.toml README.md LICENSE ./
COPY raypref raypref

# The lock names every package, setuptools too, so pip must not resolve, neither what is installed nor what builds.
FROM build AS build-cpu
COPY requirements/cpu.txt requirements/
RUN /opt/venv/bin/python -m pip install --no-deps -r requirements/cpu.txt \
 && /opt/venv/bin/python -m pip install --no-deps --no-build-isolation /src

FROM build AS build-gpu
COPY requirements/gpu.txt requirements/
RUN /opt/venv/bin/python -m pip install --no-deps -r requirements/gpu.txt \
 && /opt/venv/bin/python -m pip install --no-deps --no-build-isolation /src

FROM build AS describe
RUN python -m venv /opt/sbom && /opt/sbom/bin/python -m pip install cyclonedx-bom==7.5.0
COPY --from=build-cpu /opt/venv /opt/cpu
COPY --from=build-gpu /opt/venv /opt/gpu
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-file /cpu.cdx.json /opt/cpu/bin/python \
 && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-file /gpu.cdx.json /opt/gpu/bin/python

FROM scratch AS sbom
COPY --from=describe /cpu.cdx.json /gpu.cdx.json /

FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title=raypref \
      org.opencontainers.image.description="Personal reward models at population scale, on Ray" \
      org.opencontainers.image.licenses=Apache-2.0
# KubeRay's probes of a RayService's workers run wget, which the slim base lacks: without it no worker is ever ready.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/*
# Not root, by number: the restricted pod security standard looks at numbers.
RUN groupadd --gid 1000 raypref \
 && useradd --uid 1000 --gid 1000 --create-home raypref \
 && install -d -o 1000 -g 1000 /app /app/config /app/runs /app/secrets
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Runs, jobs and Serve configurations name paths from here.
WORKDIR /app
COPY --chown=1000:1000 jobs jobs
USER 1000:1000
# In Kubernetes KubeRay probes; elsewhere: is there a Ray that answers?
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s CMD ["ray", "health-check"]
CMD ["raypref", "--help"]

FROM base AS gpu
# Triton compiles the launchers of vLLM's kernels where they run.
USER 0
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
USER 1000:1000
COPY --from=build-gpu /opt/venv /opt/venv

FROM base AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
