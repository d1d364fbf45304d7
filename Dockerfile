# The playground in a container, for a processor without a GPU:
#
#   docker build -t fundamentallm .
#   docker run --rm -p 127.0.0.1:7860:7860 -v fundamentallm-runs:/runs fundamentallm
#
# For a GPU, take PyTorch from PyPI, whose Linux wheels bring CUDA along, and add --gpus all to docker run:
#
#   docker build -t fundamentallm --build-arg TORCH_INDEX=https://pypi.org/simple .

FROM python:3.12-slim

# The index that PyTorch comes from. Its own has wheels without CUDA, which are far smaller.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# Spaces run a container as user 1000; a container of your own has no reason to run as root either.
RUN useradd --uid 1000 --create-home user && install -d -o user -g user /runs /app
WORKDIR /app

# Looking for a newer pip would leave a cache behind.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1

# What rarely changes comes first, so that a change of the code does not install PyTorch again.
COPY requirements.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)" \
    && pip install --no-cache-dir --requirement requirements.txt

COPY pyproject.toml README.md LICENSE app.py ./
COPY configs configs
COPY examples/tiny-checkpoint examples/tiny-checkpoint
COPY fundamentallm fundamentallm
# Compiled here, since the user below may not write beside the code.
RUN pip install --no-cache-dir --no-deps --editable . && python -m compileall -q fundamentallm

USER 1000
ENV HOST=0.0.0.0 \
    PORT=7860 \
    FUNDAMENTALLM_RUNS_DIR=/runs \
    GRADIO_ANALYTICS_ENABLED=False \
    PYTHONUNBUFFERED=1
EXPOSE 7860
VOLUME /runs
# The first process of a container ignores SIGTERM, so docker stop would wait in vain.
STOPSIGNAL SIGINT

HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/\", timeout=4)"]

CMD ["python", "app.py"]
