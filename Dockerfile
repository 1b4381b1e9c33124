# The server and the workers of a cluster, in one image.
#
#   docker build -t kandinsky .                                     # PyTorch as PyPI has it: with CUDA
#   docker build -t kandinsky:cpu --build-arg TORCH_INDEX=URL .     # URL: PyTorch's index of packages for CPUs
#
# EXTRAS are those of pyproject.toml; RAY_EXTRAS is `default` for KubeRay, whose probes ask Ray's agent, and empty for a
# smaller image. Workers compute on GPUs where the container has some.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=
ARG EXTRAS=serve,ray,full,lora
ARG RAY_EXTRAS=default
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/kandinsky
ENV PATH=/opt/kandinsky/bin:$PATH
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
# the largest layer, which a change of the sources does not touch
RUN if [ -n "$TORCH_INDEX" ]; then export PIP_INDEX_URL="$TORCH_INDEX"; fi; \
    pip install --constraint constraints.txt torch
COPY comfyui ./comfyui
COPY src ./src
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" ${RAY_EXTRAS:+"ray[${RAY_EXTRAS}]"}

FROM python:${PYTHON}-slim
# wget: KubeRay's probes
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home kandinsky \
    && install -d -m 0700 -o kandinsky -g kandinsky /data /models
COPY --from=build /opt/kandinsky /opt/kandinsky
ENV PATH=/opt/kandinsky/bin:$PATH \
    HF_HOME=/models \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER kandinsky
WORKDIR /home/kandinsky
VOLUME ["/data", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["kandinsky"]
CMD ["serve", "--host", "0.0.0.0", "--store", "/data", "--keys", "/run/secrets/kandinsky_keys"]
