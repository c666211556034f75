# What the pipeline runs in, on processors and NVIDIA GPUs: the published PyTorch brings CUDA along, the host its driver.
# Pinned to the byte: Python, git, make and a compiler by the base image, packages by the hashes in requirements*.txt.
FROM python:3.11-trixie@sha256:c7220863385ee39fb6d822da81f4469d0cd33ff893d92ce94105e5c3f4b95fe2 AS pipeline
# Whoever `docker run --user` names may write into HOME; PyTorch asks for the name of the user.
ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH HOME=/home/user USER=user
RUN useradd --uid 1000 user && install --directory --mode=777 /home/user && install --directory --owner=user /opt/venv
WORKDIR /project
COPY Makefile requirements.txt requirements-dev.txt ./
USER 1000
RUN UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 make install
CMD ["dvc", "repro"]

FROM pipeline AS development
RUN PIP_NO_CACHE_DIR=1 make /opt/venv/installed-dev
