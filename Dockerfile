# One image for every service: Prefect server and worker, Dask scheduler and workers, the command line.
# Built from the lock, so that a container computes what a clone computes.
FROM python:3.11-slim-bookworm

RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 git \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/smearflow
COPY requirements.lock ./
RUN pip install --no-cache-dir --disable-pip-version-check --requirement requirements.lock
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --editable .

# Nothing here needs root; inbox and store are mounted with the laboratory's own rights.
RUN useradd --create-home --uid 10001 smearflow && chown smearflow /opt/smearflow
USER smearflow
RUN mkdir /home/smearflow/.prefect
ENV PATH=/home/smearflow/.local/bin:$PATH \
    PREFECT_HOME=/home/smearflow/.prefect \
    YOLO_CONFIG_DIR=/tmp/ultralytics \
    DO_NOT_TRACK=1 \
    PYTHONUNBUFFERED=1
CMD ["smearflow", "--help"]
