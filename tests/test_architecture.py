"""The layout: imports go one way, a dependency has one owner, importing does nothing, files stay small."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lora_variants", "experiments", "analysis")
OWNERS = {
    "wandb": {"experiments/record/wandb_logger.py", "experiments/record/wandb_mode.py"},
    "yaml": {"experiments/config/loading.py"},
    "seaborn": {
        "analysis/figures/spectra.py",
        "analysis/figures/style.py",
        "analysis/figures/benchmark.py",
        "analysis/figures/scores.py",
        "analysis/figures/learning_rate.py",
        "analysis/figures/comparisons.py",
        "analysis/figures/importance.py",
        "analysis/figures/pareto.py",
    },
    "transformers": {"experiments/models/huggingface.py", "experiments/benchmarking/workload.py"},
    "huggingface_hub": {"experiments/models/model_files.py"},
    "datasets": {"experiments/data/hub.py"},
    "pyarrow": {"experiments/data/tables.py"},
    "peft": {"experiments/benchmarking/implementations.py"},
    "loralib": {"experiments/benchmarking/implementations.py"},
    "optuna": {
        "experiments/studies/queue/storage.py",
        "experiments/studies/queue/journal_store.py",
        "experiments/studies/queue/postgres_store.py",
        "experiments/studies/queue/entries.py",
        "experiments/studies/queue/listing.py",
        "experiments/studies/queue/trial_queue.py",
        "experiments/studies/search/samplers.py",
        "experiments/studies/search/importance.py",
    },
    "sqlalchemy": {"experiments/studies/queue/storage.py", "experiments/studies/queue/postgres_store.py"},
    "platformdirs": {"experiments/user_cache.py"},
    "filelock": {"experiments/record/run_dir.py", "experiments/studies/queue/journal_store.py"},
    "rich": {
        "experiments/terminal.py",
        "experiments/benchmarking/terminal.py",
        "experiments/studies/terminal.py",
        "analysis/spectra_tables.py",
        "analysis/spectra.py",
    },
}
PURE = {
    "analysis.stats.singular_values",
    "analysis.figures.style",
    "analysis.figures.benchmark",
    "analysis.stats.comparisons",
    "analysis.stats.intervals",
    "analysis.stats.multiplicity",
    "analysis.stats.paired_tests",
    "analysis.stats.power",
    "analysis.figures.registry",
    "analysis.figures.scores",
    "analysis.figures.learning_rate",
    "analysis.figures.comparisons",
    "analysis.figures.rank_map",
    "analysis.figures.importance",
    "analysis.figures.pareto",
    "analysis.figures.captions",
    "analysis.figures.axes",
    "lora_variants.frozen_model.layer_names",
}  # functions of arrays and tables: anyone may use them


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_from_analysis_to_experiments_to_variants_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = {"lora_variants": (), "experiments": ("lora_variants",), "analysis": ("lora_variants", "experiments")}
    for module in imports(path) - PURE:
        top = module.partition(".")[0]
        assert top not in PACKAGES or top == package or top in allowed[package], f"{path} imports {module}"


def test_what_a_run_leaves_on_disk_is_written_without_knowing_how_it_is_trained() -> None:
    users = {
        path.name
        for path in (ROOT / "experiments" / "record").glob("*.py")
        if any(name.startswith("experiments.training") for name in imports(path))
    }
    assert not users


def test_functions_of_arrays_import_nothing_of_ours_but_each_other() -> None:
    for module in PURE:
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert not {name for name in imports(path) - PURE if name.partition(".")[0] in PACKAGES}


@pytest.mark.parametrize("dependency", OWNERS)
def test_a_dependency_is_imported_by_its_owner_only(dependency: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(name.partition(".")[0] == dependency for name in imports(path))
    }
    assert users <= OWNERS[dependency]
    assert users


def test_there_are_no_import_cycles() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources()}
    graph = {name: {m for m in top_level_imports(path) if m in modules} for name, path in modules.items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"cycle: {' -> '.join((*trail, name))}"
        if name not in state:
            state[name] = 1
            for other in graph[name]:
                visit(other, (*trail, name))
            state[name] = 2

    for name in graph:
        visit(name, ())


def top_level_imports(path: Path) -> set[str]:
    """Modules imported when the file is, type checking apart."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_variants_do_no_input_or_output_and_know_no_clock() -> None:
    forbidden = {"logging", "time", "pathlib", "os", "io", "json", "wandb", "optuna", "transformers", "subprocess"}
    for path in (ROOT / "lora_variants").glob("*.py"):
        assert not forbidden & {name.partition(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize(
    "script", ["experiments/run.py", "experiments/study.py", "experiments/benchmark.py", "analysis/spectra.py"]
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
    for path in sources():
        assert path.stem not in {"utils", "common", "helpers", "base", "misc"}
    entries = {path.stem for folder in ("experiments", "analysis") for path in (ROOT / folder).glob("*.py")}
    assert not entries & set(sys.stdlib_module_names)
