"""The shape of the code: who may import whom, where torch may live, how long things may be, which words are ours."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("backends", "batching", "gateway", "sessioncache")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALL_PYTHON = sorted(
    [*FILES, *(path for folder in ("tests", "bench", "docs") for path in (ROOT / folder).rglob("*.py"))]
)

CLIENT_HALF = ("backends.api", "backends.echo", "backends.frames", "backends.http", "backends.local")
# What a package may import of ours beside itself; a name allows what is below it too.
MAY_IMPORT = {
    "batching": (),
    "sessioncache": (),
    "backends": ("batching", "sessioncache.client"),
    "gateway": (*CLIENT_HALF, "batching.queue", "sessioncache.client", "sessioncache.masterkeys"),
}
# The subcommands import these when they run, never at the top of the file.
MAY_IMPORT_LAZILY = {"gateway.cli": ("backends.engine",), "gateway.sessions_cli": ("backends.engine",)}
QUANTISING = {
    "calibrate",
    "cores",
    "dense",
    "evaluate",
    "gptq",
    "quantizer",
    "sensitivity",
    "study",
    "work",
}  # offline work
TORCH_FILES = {"backends/engine/model.py", "backends/engine/kv.py", "backends/kernels/reference.py"} | {
    f"backends/engine/{name}.py" for name in QUANTISING
}
FOREIGN_WORDS = {"Manager", "Handler", "Helper", "Utils", "Service", "Context", "Info"}


def module_name(path: Path) -> str:
    """`gateway/cli.py` → `gateway.cli`; a package is named by its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Yield the modules that a file imports, ours in full (`from backends import api` is `backends.api`)."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in submodules)


def is_below(name: str, roots: tuple[str, ...]) -> bool:
    """Whether a module is one of the roots or lies in one."""
    return any(name == root or name.startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_package_imports_only_what_the_design_allows(path: Path) -> None:
    """Batching and sessioncache import nobody, backends batching and the store's client, gateway client halves."""
    package = module_name(path).split(".")[0]
    allowed = (package, *MAY_IMPORT[package])
    lazily = MAY_IMPORT_LAZILY.get(module_name(path), ())

    def ours(names: Iterator[str]) -> set[str]:
        return {name for name in names if is_below(name, PACKAGES)}

    assert {name for name in ours(imports(path, top_only=True)) if not is_below(name, allowed)} == set()
    assert {name for name in ours(imports(path)) if not is_below(name, (*allowed, *lazily))} == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    """The imports at the top of our files have no cycle."""
    graph = {
        name: {other for other in imports(path, top_only=True) if other in MODULES} for name, path in MODULES.items()
    }

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as cycle:
        pytest.fail(f"import cycle: {' -> '.join(cycle.args[1])}")


def test_torch_lives_only_where_the_model_is() -> None:
    """Only the torch runner and the reference kernels import torch, at the top or lazily."""
    users = {str(path.relative_to(ROOT)) for path in FILES if any(is_below(n, ("torch",)) for n in imports(path))}

    assert users <= TORCH_FILES


def test_the_gateway_process_never_loads_torch() -> None:
    """Importing everything that the gateway process is made of loads no torch and no engine."""
    modules = [name for name in MODULES if is_below(name, ("gateway",))]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n"
    code += "print([m for m in sys.modules if m == 'torch' or m.startswith('backends.engine')])"

    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"


def test_a_native_worker_starts_with_nothing_that_can_wait() -> None:
    """What a worker imports before it reads its weights holds no torch, no grammars, no rarer GGUF codecs."""
    code = "import sys, backends.worker, backends.engine.native, backends.engine.quantised\n"
    code += "print([m for m in ('torch', 'transformers', 'llguidance', 'gguf') if m in sys.modules])"

    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"


def test_every_library_that_we_import_is_declared() -> None:
    """What the packages import is the standard library, ours, or a dependency in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    declared = {re.split(r"[<>=\[]", each)[0].replace("-", "_") for each in requirements}

    imported = {name.split(".")[0] for path in FILES for name in imports(path)}

    assert imported - declared - sys.stdlib_module_names - set(PACKAGES) == set()


def test_every_package_ships() -> None:
    """pyproject.toml lists each package folder; their names are generic, so nothing is found by itself."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

    assert set(listed) == {module_name(path) for path in FILES if path.name == "__init__.py"}
    assert {path.parent for path in FILES} == {ROOT / name.replace(".", "/") for name in listed}


def test_no_benchmark_is_named_as_a_package_of_ours() -> None:
    """A script's folder comes first when Python looks for a module: the other scripts would import the wrong one."""
    names = {path.stem for path in (ROOT / "bench").glob("*.py")}

    assert names & (set(PACKAGES) | {"docs", "tests"}) == set()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_classes_are_named_from_the_glossary(path: Path) -> None:
    """No class is a Manager, Handler, Helper, Utils, Service, Context or Info."""
    classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]

    assert [name for name in classes if FOREIGN_WORDS & set(re.findall("[A-Z][a-z]+", name))] == []


@pytest.mark.parametrize("path", ALL_PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_fit_in_a_head(path: Path) -> None:
    """No file is over 400 lines, no function over 60."""
    text = path.read_text()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]

    assert text.count("\n") <= 400
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= 60] == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_module_says_its_purpose(path: Path) -> None:
    """A file opens with one sentence of what it is for."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""

    assert re.search(r"[.?]$", docstring.strip().split("\n\n")[0].strip())


def repository_texts() -> Iterator[tuple[str, str]]:
    """Yield each file that is, or is about to be, part of the repository, with its text."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in listed.split("\0"):
        path = ROOT / name
        if name and path.is_file() and b"\0" not in (blob := path.read_bytes()):
            yield name, blob.decode()


def test_nothing_in_the_repository_depends_on_one_machine() -> None:
    """No file names a package index or somebody's home folder: both come from the reader's own settings."""
    registries = "|".join(
        ("pypi" + r"\.org", "files.python" + "hosted", "registry.npm" + "js", "download.py" + "torch")
    )
    foreign = re.compile(rf"{registries}|(?<![\w.])/(?:home|root|Users)/\w")

    assert [f"{name}: {hit[0]}" for name, text in repository_texts() if (hit := foreign.search(text))] == []
