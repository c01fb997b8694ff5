# patgate in a small image. It does not run as root, and writes only to the data volume, so that `--read-only`
# works. The configuration is mounted; secrets come from the environment or from files (PATGATE_SECRET_KEY_FILE).
#
#   docker run --read-only -v ./patgate.yaml:/etc/patgate/patgate.yaml:ro -v patgate:/var/lib/patgate -p 8080:8080 patgate

ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /opt/patgate && python -m venv /opt/compiler
WORKDIR /src
COPY requirements-image.lock requirements-dev.lock ./
RUN /opt/patgate/bin/pip install --require-hashes -r requirements-image.lock
# Compiles the hot modules with the tools that the tests use. These tools and gcc stay in this stage.
RUN /opt/compiler/bin/pip install --require-hashes -r requirements-dev.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY proxy ./proxy
RUN PATGATE_COMPILE=1 /opt/compiler/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .
# A running gateway needs no installers; an attacker could use them.
RUN /opt/patgate/bin/pip install --no-deps /wheels/*.whl \
    && /opt/patgate/bin/pip uninstall --yes setuptools pip

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="patgate" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 patgate \
    && useradd --system --uid 10001 --gid patgate --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin patgate \
    && install -d -o patgate -g patgate -m 0700 /var/lib/patgate
COPY --from=build /opt/patgate /opt/patgate
# PATGATE_DATA_DIR overrides data_dir of the file, because a container's data must be on the volume.
ENV PATH=/opt/patgate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PATGATE_CONFIG=/etc/patgate/patgate.yaml \
    PATGATE_DATA_DIR=/var/lib/patgate
USER 10001:10001
WORKDIR /var/lib/patgate
VOLUME ["/var/lib/patgate"]
EXPOSE 8080
STOPSIGNAL SIGTERM
# Requests /livez over the control socket in the data directory; it needs no network, and no credential except the user.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["patgate", "health"]
ENTRYPOINT ["patgate"]
CMD ["serve"]
