# antrean in a container: every command of it, run by a user without rights, with nothing to build things with.
#
#   docker build -t antrean .
#   docker run --rm antrean --help
# By digest: docs/operations.md says how to renew it. Another version: --build-arg PYTHON=3.12-slim
ARG PYTHON=3.11-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7

FROM python:${PYTHON} AS build
WORKDIR /build
COPY requirements.lock .
# Wheels only, each with its hash: no compiler is needed, and nothing comes in that was not locked.
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --require-hashes --no-deps \
        --only-binary :all: -r requirements.lock
COPY schemas /opt/antrean/schemas
COPY api_client /opt/antrean/api_client
COPY worker /opt/antrean/worker
RUN /opt/venv/bin/python -m compileall -q /opt/venv /opt/antrean

FROM python:${PYTHON}
# The home folder belongs to the user before a volume is made of it: a new named volume takes that over.
RUN groupadd --system --gid 10001 antrean \
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/antrean --no-create-home --shell /usr/sbin/nologin antrean \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/antrean
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/antrean /opt/antrean
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/antrean \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ANTREAN_HOME=/var/lib/antrean
WORKDIR /var/lib/antrean
USER 10001:10001
VOLUME /var/lib/antrean
# A worker's stop: its grace of 30 s is the orchestrator's to allow (stop_grace_period in docker-compose.yml).
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-P", "-m", "worker.cli"]
CMD ["worker"]
# Of the worker. docker-compose.yml has others for the other commands.
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s --retries=3 CMD ["python", "-P", "-m", "worker.cli", "health"]
