"""The docs cannot drift: files, verbs, links, snippets, metrics and subcommands are compared with the code."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import aiohttp
import pytest

from gateway import config
from tests.serving import serving

ROOT = Path(__file__).parent.parent
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def name_of(path: Path) -> str:
    """Name a text in a test's id."""
    return str(path.relative_to(ROOT))


def blocks(language: str) -> list[tuple[str, str]]:
    """List each fenced block of a language with the name of its file."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(name_of(path), code) for path in TEXTS for code in fence.findall(path.read_text())]


def without_code(text: str) -> str:
    """Drop fenced blocks and inline code, in which brackets are not links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(path: Path) -> set[str]:
    """Give the anchors that a text's headings make."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_architecture_names_no_file_that_is_gone() -> None:
    """Each file that ARCHITECTURE.md names exists."""
    named = re.findall(
        r"`((?:backends|batching|gateway|tests|bench)/[\w/.]+\.\w+)`", (ROOT / "ARCHITECTURE.md").read_text()
    )

    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_make_verb_that_a_text_names_exists(path: Path) -> None:
    """`make something` in a text is a verb of the Makefile."""
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    verbs |= {f"bench-{script.stem}" for script in (ROOT / "bench").glob("*.py")} | {"bench-NAME"}
    code = re.findall(r"^make ((?:[\w-]+ ?)+)|`make ((?:[\w-]+ ?)+)`", path.read_text(), re.MULTILINE)

    assert {verb for pair in code for verb in " ".join(pair).split()} - verbs == set()


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    """Links between the texts, and to files and headings, resolve."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        file, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        there = path.parent / file if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)

    assert dead == []


@pytest.mark.parametrize(("name", "code"), blocks("toml"))
def test_every_toml_block_is_a_config_that_loads(name: str, code: str, tmp_path: Path) -> None:
    """A block of gateway.toml in a text is accepted as it stands, beside a model where it names none."""
    file = tmp_path / "gateway.toml"
    model = '[[models]]\nname = "m"\nreleases = [{ source = "echo" }]\n'
    file.write_text(code if "models" in tomllib.loads(code) else f"{code}\n{model}")

    assert config.load(file).models, name


@pytest.mark.parametrize(("name", "code"), blocks("python"))
def test_every_python_block_is_python(name: str, code: str) -> None:
    """A block of Python in a text parses."""
    ast.parse(code, name)


async def test_the_errors_in_the_readme_are_what_is_answered(tmp_path: Path) -> None:
    """Each curl line of a console block is answered as the text shows."""
    curl = re.compile(r"^\$ curl -s http://127.0.0.1:8000(\S+) -d '(.*)'\n(\{.*\})$", re.MULTILINE)
    shown = curl.findall((ROOT / "README.md").read_text())
    model = '[[models]]\nname = "smollm2-135m-instruct"\nreleases = [{ source = "echo" }]\n'

    told = []
    with serving(tmp_path, models=model) as served:
        async with aiohttp.ClientSession(served.url) as http:
            for path, body, _ in shown:
                async with http.post(path, data=body) as answer:
                    told.append(await answer.text())

    assert shown
    assert told == [answer for _, _, answer in shown]


def test_the_changelog_knows_this_version() -> None:
    """CHANGELOG.md has a heading for the version in pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_generated_pages_are_up_to_date() -> None:
    """`make docs` would change nothing: each file, metric and subcommand has its place in the docs."""
    run = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stdout + run.stderr
