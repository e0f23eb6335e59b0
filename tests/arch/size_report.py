"""Print the size of the package: growth is seen in each change, before it hurts.

A budget to notice, not a wall: function p99 at most 80 lines, class at most 250 lines and 12 public methods.
Run alone or by `make test`; the numbers come from one pass over the syntax trees.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]


class Sized(NamedTuple):
    """A function or a class: lines first, so that sorting is by size."""

    num_lines: int
    where: str
    num_public_methods: int = 0


class Report(NamedTuple):
    """Everything that is printed, so that a test can look at it."""

    num_files: int
    num_lines: int
    functions: list[Sized]
    classes: list[Sized]
    num_config_fields: int
    num_env_keys: int
    num_test_lines: int
    num_native_lines: int


def percentile(values: list[Sized], share: float) -> int:
    """Lines of the function below which `share` of all functions lie."""
    return values[min(len(values) - 1, int(len(values) * share))].num_lines


def count_lines(root: Path, *suffixes: str) -> int:
    paths = [p for p in root.rglob("*") if p.suffix in suffixes]
    return sum(len(p.read_text(errors="replace").splitlines()) for p in paths)


def settings_fields() -> int:
    """Leaf fields of the settings tree: what a person may set, each also by one environment key."""
    import msgspec

    from headrace.core.settings import Settings

    def leaves(struct: type[msgspec.Struct]) -> int:
        total = 0
        for field in msgspec.structs.fields(struct):
            nested = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
            total += leaves(field.type) if nested else 1
        return total

    return leaves(Settings)


def measure() -> Report:
    functions: list[Sized] = []
    classes: list[Sized] = []
    paths = sorted((REPOSITORY / "headrace").rglob("*.py"))
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            where = f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)} {getattr(node, 'name', '')}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(Sized(node.end_lineno - node.lineno + 1, where))
            elif isinstance(node, ast.ClassDef):
                methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
                public = sum(not name.startswith("_") for name in methods)
                classes.append(Sized(node.end_lineno - node.lineno + 1, where, public))
    fields = settings_fields()
    return Report(
        num_files=len(paths),
        num_lines=sum(len(p.read_text().splitlines()) for p in paths),
        functions=sorted(functions),
        classes=sorted(classes),
        num_config_fields=fields,
        num_env_keys=fields,
        num_test_lines=count_lines(REPOSITORY / "tests", ".py"),
        num_native_lines=count_lines(REPOSITORY / "csrc", ".h", ".hpp", ".cpp", ".cc", ".c"),
    )


def main() -> None:
    r = measure()
    longest, biggest = r.functions[-1], r.classes[-1]
    print(f"size: {r.num_files} files, {r.num_lines} lines; native {r.num_native_lines}, tests {r.num_test_lines}")
    print(
        f"  functions: {len(r.functions)}; median {percentile(r.functions, 0.5)}, p90 {percentile(r.functions, 0.9)}, "
        f"p99 {percentile(r.functions, 0.99)} lines; longest {longest.num_lines} ({longest.where})"
    )
    print(f"  biggest class: {biggest.num_lines} lines, {biggest.num_public_methods} public methods ({biggest.where})")
    print(f"  config fields: {r.num_config_fields}; environment keys: {r.num_env_keys}")


if __name__ == "__main__":
    main()
