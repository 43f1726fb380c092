# syntax=docker/dockerfile:1
# Three images, one for each target:
#   template           launches user-signin on Dataflow, and is what the workers of every job of ours run
#   template-backfill  the same, launching backfill-signin
#   service            answers HTTP
# .ci/image goes through the steps of this file where there is no Docker.
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
RUN pip install --require-hashes -r requirements-build.txt
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
RUN pip install --require-hashes -r requirements-pipeline.txt
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

FROM python AS service
WORKDIR /var/lib/signin
COPY requirements.txt ./
RUN pip install --require-hashes -r requirements.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps --no-index /wheels/*.whl && pip check && chmod 1777 /var/lib/signin
ENV SIGNIN_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
CMD ["signin", "serve"]
