# Main node and REST API in one container; compose.yaml says how to run it, also as a worker.

FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/retire-cluster && \
    sed '/^# --- development ---$/,$d' requirements.lock > run.lock && \
    /opt/retire-cluster/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r run.lock && \
    /opt/retire-cluster/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin cluster && \
    install --directory --owner=cluster --group=cluster --mode=0700 /data
COPY --from=build /opt/retire-cluster /opt/retire-cluster
ENV PATH=/opt/retire-cluster/bin:$PATH \
    RETIRE_CLUSTER_DATA_DIR=/data
USER 10001
VOLUME /data
# REST API, worker bus, installer for new devices. The admin socket stays inside.
EXPOSE 8081 8082 8084
HEALTHCHECK --interval=30s --timeout=6s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8081/health', timeout=5)"]
ENTRYPOINT ["retire-cluster"]
CMD ["up", "--host", "0.0.0.0", "--auth", "--workers", "0"]
