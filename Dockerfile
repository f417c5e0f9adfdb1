# Serve an exported student:
#
#   docker build -t msft-serve .                      on the CPU: torch, ONNX and OpenVINO
#   docker build -t msft-serve:cuda --target cuda .   on a GPU
#   docker run -p 8080:8080 -v ./ranker:/model:ro msft-serve
#
# /model is a folder of `msft students export`. MSFT_SERVE_KEY sets the key that clients must send.

FROM python:3.13-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY msft msft
COPY labelstore labelstore
COPY teachers teachers
COPY students students
COPY cli cli
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim-bookworm AS runtime
LABEL org.opencontainers.image.title="msft students serve" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --create-home --uid 1000 msft
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
ENV HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/msft
EXPOSE 8080
HEALTHCHECK --start-period=120s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["msft", "students", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["/model"]

FROM runtime AS cuda
RUN set -- /wheels/msft-*.whl && pip install --no-cache-dir --constraint /wheels/constraints.txt "$1[serve]"
USER msft

FROM runtime AS cpu
RUN set -- /wheels/msft-*.whl && pip install --no-cache-dir --constraint /wheels/constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu "$1[serve,onnx,openvino]"
USER msft
