# The device module: follows the twin, keeps models in /iotedge/storage, serves them on port 8080.
#   docker build -t edgeferry:0.1.0 .
# The host folder that is bound to /iotedge/storage must belong to user 10001:
#   install -d -o 10001 -g 10001 -m 0750 /srv/edgeferry
# tests/cli/test_dockerfile.py runs the install steps below in a clean environment.

FROM python:3.12-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY requirements/constraints.txt requirements/constraints.txt
COPY src src
RUN python -m venv /opt/edgeferry
RUN /opt/edgeferry/bin/pip install --no-cache-dir --disable-pip-version-check --constraint requirements/constraints.txt '.[device,onnx,litert]'

FROM python:3.12-slim
COPY --from=build /opt/edgeferry /opt/edgeferry
RUN groupadd --gid 10001 edgeferry \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /iotedge/storage --shell /usr/sbin/nologin edgeferry \
    && install -d -o 10001 -g 10001 -m 0750 /iotedge/storage
ENV PATH=/opt/edgeferry/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /iotedge/storage
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["edgeferry"]
CMD ["device", "run", "--storage", "/iotedge/storage"]
