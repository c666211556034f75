"""The definitions of containers, which nothing here can build: read."""

import json
import re

from tests.clone import ROOT

DOCKERFILE, APPTAINER, GITLAB = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", "apptainer.def", ".gitlab-ci.yml")
)
STAGES = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)


def test_base_images_are_pinned_by_digest_and_the_one_of_python_is_the_same_everywhere():
    images = re.findall(r"^(?:FROM|From:|  image:) (\S+)", DOCKERFILE + APPTAINER + GITLAB, re.MULTILINE)
    pinned = [
        re.fullmatch(r"(\w+)(?::[\w.-]+)?@sha256:([0-9a-f]{64})", image) for image in images if image not in STAGES
    ]
    assert None not in pinned, images
    assert sorted({match[1] for match in pinned}) == ["node", "python"]
    assert len({match[2] for match in pinned if match[1] == "python"}) == 1


def test_images_copy_what_make_installs_from_and_the_dev_container_builds_a_stage_of_the_dockerfile():
    copied = re.findall(r"^COPY (.*) \./$", DOCKERFILE, re.MULTILINE)[0].split()
    assert copied == re.findall(r"^    (\S+) /opt/$", APPTAINER, re.MULTILINE)
    assert copied == ["Makefile", "requirements.txt", "requirements-dev.txt"]  # as tests/test_requirements.py does
    configuration = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert configuration["build"]["target"] in STAGES
