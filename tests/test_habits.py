"""CI, pre-commit and citation are well-formed and agree with requirements.txt, pyproject.toml and README.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CI = ".github/workflows/ci.yml"
HOOKS = ".pre-commit-config.yaml"
CITATION = "CITATION.cff"


def read(name):
    """A YAML file of the project."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (timm and mkdocs bring it)")
    return yaml.safe_load((ROOT / name).read_text())


def version(text):
    """(0, 17, 6) of "v0.17.6"."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def bounds(name):
    """{package: lower bound} of a requirements file."""
    return dict(re.findall(r"^([\w-]+)>=([\d.]+)$", (ROOT / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", [CI, HOOKS, CITATION])
def test_it_is_yaml(name):
    assert isinstance(read(name), dict)


def test_ci_runs_what_people_run():
    for name, job in read(CI)["jobs"].items():
        assert any(step.get("run") == "bash .ci/run" for step in job["steps"]), name
        assert job["timeout-minutes"] <= 60, name


def test_ci_covers_the_oldest_python_and_none_older():
    target = re.search(r'^target-version = "py(\d)(\d+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    oldest = (int(target[1]), int(target[2]))
    jobs = read(CI)["jobs"]
    pythons = [version(python) for python in jobs["newest"]["strategy"]["matrix"]["python"]]
    assert min(pythons) == oldest
    (setup,) = (step for step in jobs["oldest"]["steps"] if "setup-python" in step.get("uses", ""))
    assert version(setup["with"]["python-version"]) == oldest


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-extra.txt"])
def test_every_requirement_has_a_lower_bound(name):
    """CI's job for the oldest versions makes exact versions of them."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert len(bounds(name)) == len(lines)


def test_the_hooks_ruff_is_one_that_requirements_allow():
    revisions = {repo["repo"].rsplit("/", 1)[-1]: repo["rev"] for repo in read(HOOKS)["repos"]}
    assert version(revisions["ruff-pre-commit"]) >= version(bounds("requirements.txt")["ruff"])


def test_the_citation_names_every_paper_that_the_readme_names():
    cited = read(CITATION)
    assert cited["cff-version"] == "1.2.0"
    assert all(paper["authors"] and paper["title"] and paper["year"] for paper in cited["references"])
    sources = (ROOT / "README.md").read_text().split("## Licence and sources")[1]
    assert set(re.findall(r"https://arxiv\.org/abs/[\d.]+", sources)) <= {paper["url"] for paper in cited["references"]}
