"""CI, pre-commit and citation are well-formed and agree with requirements.txt, pyproject.toml and README.md."""

import ast
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


def opens_text(call):
    """Whether a call opens, reads or writes text and leaves it to the machine how that is encoded."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in options:
        return False
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text", "FileHandler"):
        return True
    if getattr(options.get("text"), "value", None) is True:
        return True
    values = (argument.value for argument in [*call.args, *options.values()] if isinstance(argument, ast.Constant))
    binary = any(isinstance(value, str) and re.fullmatch(r"[rwaxb+]*b[rwaxb+]*", value) for value in values)
    return name == "open" and owner not in ("Image", "os", "tarfile") and not binary


@pytest.mark.parametrize("top", ["main.py", "engine.py", "hubconf.py", "models", "datasets", "util", "tools"])
def test_text_is_utf8_on_every_machine(top):
    """A machine's own encoding may be ASCII or cp1252, and does not know every class and every path."""
    for path in [ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and opens_text(node)]
        assert not calls, f"{path}, line {calls[0].lineno}: encoding='utf-8' is missing"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("open(path, 'a')", True),
        ("run(words, text=True)", True),
        ("path.open('rb')", False),
        ("path.open('ab+', buffering=0)", False),
        ("path.write_text(text, encoding='utf-8')", False),
        ("Image.open(path)", False),
        ("write_text(path, 'x')", False),
    ],
)
def test_what_counts_as_text(code, found):
    assert opens_text(ast.parse(code).body[0].value) == found
