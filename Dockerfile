# syntax=docker/dockerfile:1
# Four images, one for each target:
#   template           launches user-signin on Dataflow, and is what the workers of every job of ours run
#   template-backfill  the same, launching backfill-signin
#   service            answers HTTP; the migration runs in it too
#   local              the local stack, for compose.yaml; it has Beam, DuckDB and the service besides
# .ci/image goes through the steps of this file where there is no Docker.
# The requirements are complete, and `pip check` says so: with --no-deps pip has nothing to choose. Where it has,
# a newer release that one of them asks for with an extra may get the better of the pin, and ends the build.
ARG BEAM_VERSION=2.77.0
ARG LAUNCHER_VERSION=20260122_RC00

FROM python:3.11-slim-bookworm AS python
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

FROM apache/beam_python3.11_sdk:${BEAM_VERSION} AS beam

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:${LAUNCHER_VERSION} AS launcher

FROM python AS wheel
WORKDIR /src
COPY requirements-build.txt ./
RUN pip install --no-deps --require-hashes -r requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY alembic alembic
COPY pipeline pipeline
COPY service service
COPY transforms transforms
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python AS template
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
WORKDIR /template
COPY requirements-pipeline.txt ./
RUN pip install --no-deps --require-hashes -r requirements-pipeline.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps --no-index /wheels/*.whl && pip check
# All is installed: workers need no environment of their own, and the launcher has nothing to download. It
# would, at every launch, if one of its variables for requirements or a setup file were set.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 \
    FLEX_TEMPLATE_PYTHON_PY_FILE=/usr/local/lib/python3.11/site-packages/pipeline/user_signin.py
RUN test -f "$FLEX_TEMPLATE_PYTHON_PY_FILE"
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM template AS template-backfill
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/usr/local/lib/python3.11/site-packages/pipeline/backfill_signin.py
RUN test -f "$FLEX_TEMPLATE_PYTHON_PY_FILE"

# What the last two images run lies in /opt/signin, made elsewhere: they get neither pip's leftovers nor a layer
# that is replaced by the next. The root file system is read-only where they run, so the bytecode is made here,
# and it is taken as it is: nobody changes a source file there.
FROM python AS service-packages
WORKDIR /build
COPY requirements.txt ./
RUN python -m venv --without-pip /opt/signin && \
    pip --python /opt/signin/bin/python install --no-compile --no-deps --require-hashes -r requirements.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/signin/bin/python install --no-compile --no-deps --no-index /wheels/*.whl && \
    pip --python /opt/signin/bin/python check && \
    python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/signin/lib

FROM python AS local-packages
WORKDIR /build
COPY requirements-local.txt ./
RUN python -m venv --without-pip /opt/signin && \
    pip --python /opt/signin/bin/python install --no-compile --no-deps --require-hashes -r requirements-local.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/signin/bin/python install --no-compile --no-deps --no-index /wheels/*.whl && \
    pip --python /opt/signin/bin/python check && \
    python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/signin/lib

FROM python AS runtime
# Whichever user a platform chooses may write here, and nowhere else; a volume covers it.
RUN install -d -m 1777 /var/lib/signin
WORKDIR /var/lib/signin
ENV PATH=/opt/signin/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    SIGNIN_DATA_DIR=/var/lib/signin \
    TMPDIR=/var/lib/signin
USER 10001:10001
# A PID 1 of its own: the kernel gives a process with that number no signal that it has no handler for yet, so a
# SIGTERM during the start would be lost; and it reaps what `docker exec` and workers that were killed leave.
ENTRYPOINT ["dumb-init", "--single-child", "--"]

FROM runtime AS local
COPY --from=local-packages /opt/signin /opt/signin
CMD ["signin", "local"]

FROM runtime AS service
COPY --from=service-packages /opt/signin /opt/signin
ENV SIGNIN_HOST=0.0.0.0 \
    SIGNIN_PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --start-interval=1s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['SIGNIN_PORT'] + '/healthz', timeout=2)"]
CMD ["signin", "serve"]
