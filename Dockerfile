# The image of every nnsec process; what it does is the command: `stream`, `worker view`, ….
#
#   docker build -t nnsec .
#   docker build -t nnsec --build-arg TORCH_INDEX=https://pypi.org/simple .    # torch with CUDA
#
# It holds no key and no configuration: both come in when it is started (docs/deployment.md).

FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/nnsec
ENV PATH=/opt/nnsec/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
# By itself, as it is large and changes seldom.
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
        -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY nnsec nnsec
COPY streams streams
COPY workers workers
RUN pip install -c constraints.txt .

FROM python:3.11-slim
COPY --from=build /opt/nnsec /opt/nnsec
# Folders that any user may write: who runs the processes is chosen when they are started.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin nnsec \
    && install -d -m 1777 /registry /srv/nnsec /srv/nnsec/.nnsec
ENV PATH=/opt/nnsec/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    NNSEC_HTTP__LISTEN=0.0.0.0:8080 \
    NNSEC_REGISTRY__URL=/registry
WORKDIR /srv/nnsec
USER 10001:10001
EXPOSE 8080
VOLUME ["/registry"]
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["nnsec"]
CMD ["stream"]
