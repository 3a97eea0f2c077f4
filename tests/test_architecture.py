"""The layout: imports go one way, nothing is circular, a dependency has one owner, importing does nothing."""

import ast
import subprocess
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from project_paths import PACKAGES, ROOT, SOURCES

OWNERS = {  # a file, or a folder with all in it
    "wandb": ("experiments/record",),
    "yaml": ("experiments/config/yaml_files.py",),
    "seaborn": ("analysis/figures",),
    "transformers": ("experiments/models/huggingface.py", "experiments/benchmarking/workload.py"),
    "huggingface_hub": ("experiments/models/model_files.py",),
    "datasets": ("experiments/data/hub.py",),
    "pyarrow": ("experiments/data/tables.py", "experiments/record/predictions.py"),
    "peft": ("experiments/benchmarking/implementations.py",),
    "loralib": ("experiments/benchmarking/implementations.py",),
    "optuna": ("experiments/studies/queue", "experiments/studies/search"),
    "sqlalchemy": ("experiments/studies/queue",),
    "regex": ("experiments/record/peft_config.py",),
    "platformdirs": ("experiments/user_cache.py",),
    "filelock": ("experiments/record/run_dir.py", "experiments/studies/queue/journal_store.py"),
    "rich": (
        "experiments/terminal.py",
        "experiments/benchmarking/terminal.py",
        "experiments/studies/terminal.py",
        "analysis/spectra_tables.py",
        "analysis/spectra.py",
    ),
}
BELOW = {"lora_variants": (), "experiments": ("lora_variants",), "analysis": ("lora_variants", "experiments")}
OPEN_TO_ALL = "analysis.stats"  # functions of arrays
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_entry(path: Path) -> bool:
    """Whether a file is a command: it stands above all packages and may put any two together."""
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree_of(path).body
    )


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """The modules that these nodes import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES or f"{name}.__init__" in MODULES else node.module for name in whole}
    return found


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports: at the top, inside functions, or for its types alone."""
    return imported(ast.walk(tree_of(path)))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_from_analysis_to_experiments_to_variants_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {module for module in imports(path) if module.partition(".")[0] in PACKAGES}
    if (ROOT / OPEN_TO_ALL.replace(".", "/")) in path.parents:
        assert not {module for module in ours if not module.startswith(OPEN_TO_ALL)}, path
    elif not is_entry(path):
        allowed = {package, *BELOW[package]}
        assert not {
            module for module in ours if module.partition(".")[0] not in allowed and not module.startswith(OPEN_TO_ALL)
        }, path


@pytest.mark.parametrize("dependency", OWNERS)
def test_a_dependency_is_imported_by_its_owner_only(dependency: str) -> None:
    users = {path for path in SOURCES if any(name.partition(".")[0] == dependency for name in imports(path))}
    owners = {ROOT / owner for owner in OWNERS[dependency]}
    assert users
    assert not {path for path in users if not owners & {path, *path.parents}}


def circles(graph: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """A path through each circle that is met first."""
    found: list[tuple[str, ...]] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append((*trail[trail.index(name) :], name))
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    return found


def our_imports(path: Path) -> set[str]:
    found = {name if name in MODULES else f"{name}.__init__" for name in imports(path)}
    return found & MODULES.keys()


def test_files_import_each_other_in_no_circle_not_even_inside_functions() -> None:
    assert circles({name: our_imports(path) for name, path in MODULES.items()}) == []


def test_packages_import_each_other_in_no_circle() -> None:
    """A module that stands in a top folder itself counts alone: commands and what they call stand there."""

    def room(module: str) -> str:
        folder = module.rpartition(".")[0]
        return module if folder in PACKAGES else folder

    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in MODULES.items():
        graph[room(name)] |= {room(other) for other in our_imports(path)} - {room(name)}
    assert circles(graph) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [("b", "c", "b")]


def test_modules_are_imported_by_string_in_the_two_registries_alone() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(
            getattr(node, "id", getattr(node, "attr", "")) in ("import_module", "__import__")
            for node in ast.walk(tree_of(path))
        )
    }
    assert users == {"lora_variants/registry.py", "experiments/tasks/registry.py"}


def test_the_variants_do_no_input_or_output_and_know_no_clock() -> None:
    forbidden = {"logging", "time", "pathlib", "os", "io", "json", "wandb", "optuna", "transformers", "subprocess"}
    methods = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "lora_variants"]
    assert any(len(path.relative_to(ROOT).parts) > 2 for path in methods)  # sub-packages are looked into
    for path in methods:
        assert not forbidden & {name.partition(".")[0] for name in imports(path)}, path


WAYS = {  # what a reader opens one after the other, each because the one before names it; and the most files allowed
    "from a run to the formula of ΔW": (3, "experiments.run", "lora_variants.registry", "lora_variants.lora"),
    "from a run to the product with B": (
        4,
        "experiments.run",
        "lora_variants.registry",
        "lora_variants.lora",
        "lora_variants.interface.factored_layer",
    ),
    "from a study to a verdict": (
        6,
        "experiments.study",
        "analysis.study_results.conclusion",
        "analysis.study_results.verdicts",
        "analysis.stats.comparisons",
        "analysis.stats.paired_tests",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_way_to_what_matters_is_short(way: str) -> None:
    most, *modules = WAYS[way]
    assert len(modules) <= most
    for module, following in pairwise(modules):
        text = MODULES[module].read_text(encoding="utf-8")
        assert following in imports(MODULES[module]) or f'"{following}"' in text, f"{module} does not name {following}"


def test_seven_files_of_ours_are_between_a_command_and_the_product_with_b(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the call stack of a real run, at the product."""
    from experiments.run import main
    from lora_variants.interface import factored_layer

    stacks: list[list[str]] = []
    product = factored_layer.factored_linear

    def watched(*operands: Any) -> Any:
        stacks.append([frame.filename for frame in traceback.extract_stack()])
        return product(*operands)

    monkeypatch.setattr(factored_layer, "factored_linear", watched)
    tiny = ["--set", "task.pretraining_steps=1", "--set", "steps=1", "--set", "wandb.mode=disabled"]
    assert main([*tiny, "--runs-dir", str(tmp_path)]) == 0
    ours = {str(path): str(path.relative_to(ROOT)) for path in SOURCES}
    assert list(dict.fromkeys(ours[name] for name in stacks[0] if name in ours)) == [
        "experiments/run.py",
        "experiments/runner.py",
        "experiments/training/loop.py",
        "experiments/tasks/bytes.py",
        "experiments/models/transformer.py",
        "lora_variants/interface/layer.py",
        "lora_variants/interface/factored_layer.py",
    ]


@pytest.mark.parametrize(
    "script",
    [
        "experiments/run.py",
        "experiments/study.py",
        "experiments/benchmark.py",
        "experiments/ship.py",
        "analysis/spectra.py",
        "analysis/variance.py",
    ],
)
def test_help_imports_nothing_heavy(script: str) -> None:
    heavy = {"torch", "numpy", "pandas", "wandb", "pydantic", "seaborn", "transformers", "peft"}
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(ROOT / script)!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_module_has_a_name_that_says_nothing_or_hides_another() -> None:
    for path in SOURCES:
        assert path.stem not in {"utils", "common", "helpers", "base", "misc"}
    entries = {path.stem for folder in ("experiments", "analysis") for path in (ROOT / folder).glob("*.py")}
    assert not entries & {*sys.stdlib_module_names, *OWNERS, "torch", "numpy", "pandas", "pydantic"}
