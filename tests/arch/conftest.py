"""Parsed sources of the package, shared by the architecture tests."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


class Import(NamedTuple):
    """One imported module, absolute, and where it is imported."""

    module: str
    line: int


class Module(NamedTuple):
    """One source file: dotted name without `.__init__`, and its syntax tree."""

    path: Path
    name: str
    is_package: bool
    source: str
    tree: ast.Module

    @property
    def where(self) -> str:
        return str(self.path.relative_to(REPOSITORY))

    def imports(self) -> list[Import]:
        """Every import anywhere in the file: in functions and under TYPE_CHECKING too."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [Import(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = self.name.split(".")
                    keep = len(parts) - node.level + self.is_package
                    base = ".".join([*parts[:keep], *([base] if base else [])])
                # `from headrace import core` names a package too, so each name is looked at as a module as well.
                found.append(Import(base, node.lineno))
                found += [Import(f"{base}.{alias.name}", node.lineno) for alias in node.names if alias.name != "*"]
        return found


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    found = []
    for path in sorted((REPOSITORY / "headrace").rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        source = path.read_text()
        found.append(Module(path, name, is_package, source, ast.parse(source, str(path))))
    return found
