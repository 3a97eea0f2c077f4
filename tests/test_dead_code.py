"""No product function that only tests call: what nothing else of the product uses belongs to a test, or nowhere."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lora_variants", "experiments", "analysis", "examples")
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, eq=False)
class Source:
    """A file of the product, or the Python that a document shows."""

    module: str
    text: str

    @cached_property
    def nodes(self) -> list[tuple[ast.AST, tuple[Definition, ...]]]:
        """Every node with the definitions that it stands in, from the outside in."""
        return list(_with_surroundings(ast.parse(self.text), ()))

    @cached_property
    def strings(self) -> set[object]:
        return {node.value for node, _ in self.nodes if isinstance(node, ast.Constant)}

    @cached_property
    def imported(self) -> set[str]:
        """Every module, and everything that is imported from one, by its full name."""
        imports = [node for node, _ in self.nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        origins = [f"{node.module}." if isinstance(node, ast.ImportFrom) else "" for node in imports]
        return {origin + alias.name for origin, node in zip(origins, imports, strict=True) for alias in node.names}


def _with_surroundings(
    node: ast.AST, around: tuple[Definition, ...]
) -> Iterator[tuple[ast.AST, tuple[Definition, ...]]]:
    yield node, around
    around = (*around, node) if isinstance(node, Definition) else around
    for child in ast.iter_child_nodes(node):
        yield from _with_surroundings(child, around)


@dataclass(frozen=True, eq=False)
class Found:
    """A definition, or a name where it is used."""

    source: Source
    node: ast.AST
    name: str
    around: tuple[Definition, ...]

    @property
    def label(self) -> str:
        return f"{self.source.module}:{'.'.join([*(node.name for node in self.around), self.name])}"


def product() -> list[Source]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    shown = Source("README", "\n".join(PYTHON_BLOCK.findall((ROOT / "README.md").read_text("utf-8"))))
    return [shown, *(Source(module, path.read_text("utf-8")) for module, path in zip(modules, paths, strict=True))]


def unused(sources: list[Source]) -> list[str]:
    """What nothing uses, or only itself, or only what is unused."""
    uses: defaultdict[str, list[Found]] = defaultdict(list)
    defined = []
    for source in sources:
        for node, around in source.nodes:
            for name in names_used(node):
                uses[name].append(Found(source, node, name, around))
            if isinstance(node, Definition):
                defined.append(Found(source, node, node.name, around))
    candidates = [each for each in defined if not is_called_from_outside(each)]
    dead: dict[ast.AST, Found] = {}
    while True:
        more = [
            each
            for each in candidates
            if each.node not in dead
            and not any(
                is_use_of(use, each) and each.node not in use.around and dead.keys().isdisjoint(use.around)
                for use in uses[each.name]
            )
        ]
        if not more:
            return sorted(each.label for each in dead.values() if dead.keys().isdisjoint(each.around))
        dead |= {each.node: each for each in more}


def names_used(node: ast.AST) -> list[str]:
    match node:
        case ast.Attribute(value=ast.Call(func=ast.Name("super"))):  # an override does not use what it overrides
            return []
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
            return [name]
        case ast.ImportFrom(names=aliases):
            return [alias.name for alias in aliases]
    return []


def is_use_of(use: Found, definition: Found) -> bool:
    """Whether a name that is the definition's may stand for it, as far as the text tells."""
    source, around = definition.source, definition.around
    in_the_same_file = use.source is source
    if around and isinstance(around[-1], ast.ClassDef):  # a method: of which class a value is, is not known
        return isinstance(use.node, ast.Attribute) or (in_the_same_file and isinstance(use.node, ast.Name))
    if around:  # a function within a function
        return isinstance(use.node, ast.Name) and use.around[: len(around)] == around
    match use.node:
        case ast.Name():
            return in_the_same_file
        case ast.ImportFrom(module=module):
            return module == source.module
        case ast.Attribute():  # module.function
            return source.module in use.source.imported
        case _:  # an entry of a table: "lora_variants.lora", "LoRA"
            return source.module in use.source.strings


def is_called_from_outside(definition: Found) -> bool:
    """By Python itself, by pydantic, or by a base class that is not ours."""
    name, around = definition.name, definition.around
    if name.startswith("__") and name.endswith("__"):
        return True
    decorators = getattr(definition.node, "decorator_list", [])
    called = {ast.unparse(each.func if isinstance(each, ast.Call) else each) for each in decorators}
    if any(f"pydantic.{decorator}" in definition.source.imported for decorator in called):
        return True
    if not around or not all(isinstance(node, ast.ClassDef) for node in around):
        return False
    cls = import_module(definition.source.module)
    for node in around:
        cls = getattr(cls, node.name)
    ours = {*PACKAGES, definition.source.module}
    return any(name in vars(base) for base in cls.__mro__ if base.__module__.partition(".")[0] not in ours)


def test_all_that_the_product_defines_is_used_by_the_product() -> None:
    assert unused(product()) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["def f(): pass"], ["m0:f"]),
        (["def f(): pass\nf()"], []),
        (["def f(): pass", "from m0 import f"], []),
        (["def f(): pass", "import m0\nm0.f()"], []),
        (["def f(): pass", "ENTRIES = {'it': ('m0', 'f')}"], []),
        (["def f(): f()"], ["m0:f"]),
        (["def f(): pass\ndef g(): f()"], ["m0:f", "m0:g"]),
        (["def f(): pass", "from m2 import f\nf()\nx.f()", "def f(): pass"], ["m0:f"]),
        (["def f():\n    def g(): pass", "from m0 import f\nf.g()"], ["m0:f.g"]),
    ],
)
def test_a_function_is_used_by_its_name_an_import_its_module_or_a_table(files: list[str], expected: list[str]) -> None:
    assert unused([Source(f"m{number}", text) for number, text in enumerate(files)]) == expected


CLASSES = """
import ast, pydantic
from pydantic import field_validator

class Ours(ast.NodeVisitor):
    def own(self): pass

class Visitor(Ours):
    def generic_visit(self, node): super().generic_visit(node)
    def own(self): super().own()

class Other(Ours):
    def own(self): super().own()

class Config(pydantic.BaseModel):
    size: int
    @field_validator("size")
    def _checked(cls, size): return size
    @staticmethod
    def _forgotten(size): return size
    def __len__(self): return self.size

Visitor, Other, Config
"""


def test_a_method_is_called_by_an_attribute_by_python_by_pydantic_or_by_a_base_class_that_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "its_classes.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    classes = Source("its_classes", CLASSES)
    assert unused([classes]) == [
        f"its_classes:{name}" for name in ("Config._forgotten", "Other.own", "Ours.own", "Visitor.own")
    ]
    assert unused([classes, Source("m", "x.own(x._forgotten)")]) == []
