"""Habits that a reader relies on: names, docstrings, public names, one reader of the environment."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

SMALL_LINES = 80  # a file this short may say all in one sentence
LONG_LINES = 500  # past this the docstring gives the reason


def test_modules_are_named_after_a_thing(modules: list[Any]) -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc", "stuff"}
    assert not [m.where for m in modules if m.name.split(".")[-1].lstrip("_") in vague]


def test_every_module_says_what_it_owns(modules: list[Any]) -> None:
    wrong = []
    for module in modules:
        text = (ast.get_docstring(module.tree) or "").strip()
        if not text:
            wrong.append(f"{module.where} has no docstring")
        elif not module.is_package and len(module.source.splitlines()) > SMALL_LINES and len(text.splitlines()) < 3:
            wrong.append(f"{module.where}: the docstring has {len(text.splitlines())} lines, 3 to 12 say what it owns")
    assert not wrong, "\n".join(wrong)


def test_a_long_file_says_why_it_is_long(modules: list[Any]) -> None:
    wrong = []
    for module in modules:
        num_lines = len(module.source.splitlines())
        if num_lines > LONG_LINES and "long because" not in (ast.get_docstring(module.tree) or "").lower():
            wrong.append(f"{module.where}: {num_lines} lines; split it, or say 'Long because …' in its docstring")
    assert not wrong, "\n".join(wrong)


def test_public_classes_and_functions_have_a_docstring(modules: list[Any]) -> None:
    wrong = []
    for module in modules:
        for node in module.tree.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                wrong.append(f"{module.where}:{node.lineno} {node.name}")
    assert not wrong, "\n".join(wrong)


def constants_classes_functions(name: str) -> tuple[int, str]:
    """The order that the linter keeps `__all__` in."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_a_package_file_only_re_exports_its_sorted_public_names(modules: list[Any]) -> None:
    wrong = []
    for module in (m for m in modules if m.is_package and m.name != "headrace"):
        imported: set[str] = set()
        public: list[str] = []
        for node in module.tree.body:
            match node:
                case ast.Expr(value=ast.Constant(value=str())):
                    pass
                case ast.ImportFrom():
                    imported |= {alias.asname or alias.name for alias in node.names}
                case ast.Assign(targets=[ast.Name(id="__all__")]):
                    public = ast.literal_eval(node.value)
                case ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.List() as names):
                    public = ast.literal_eval(names)
                case _:
                    wrong.append(f"{module.where}:{node.lineno} does more than re-export")
        imported.discard("annotations")
        if public != sorted(public, key=constants_classes_functions):
            wrong.append(f"{module.where}: __all__ is not sorted")
        if set(public) != imported:
            wrong.append(f"{module.where}: __all__ and imports differ by {sorted(set(public) ^ imported)}")
    assert not wrong, "\n".join(wrong)


def test_only_settings_reads_the_environment(modules: list[Any]) -> None:
    wrong = []
    for module in modules:
        if module.name == "headrace.core.settings":
            continue
        handed_on = {  # `subprocess.Popen(…, env={**os.environ, …})` reads nothing
            inner
            for node in ast.walk(module.tree)
            if isinstance(node, ast.keyword) and node.arg == "env"
            for inner in ast.walk(node.value)
        }
        for node in ast.walk(module.tree):
            if node in handed_on:
                continue
            match node:
                case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "putenv"):
                    wrong.append(f"{module.where}:{node.lineno}")
                case ast.ImportFrom(module="os") if {a.name for a in node.names} & {"environ", "getenv"}:
                    wrong.append(f"{module.where}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_every_module_postpones_annotations(modules: list[Any]) -> None:
    wrong = [
        m.where
        for m in modules
        if not m.is_package and not any(i.module == "__future__.annotations" for i in m.imports())
    ]
    assert not wrong


def tracked_texts(repository: Path) -> dict[str, str]:
    """What a reader of the repository reads, this directory's own word lists left out."""
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".h", ".hpp", ".cpp", ".json", ".cc", ".c"}
    roots = ["headrace", "csrc", "tests", "docs", "examples", "bench", "deploy", ".ci"]
    paths = [p for root in roots for p in (repository / root).rglob("*")] + list(repository.glob("*"))
    return {
        str(p.relative_to(repository)): p.read_text(errors="replace")
        for p in paths
        if p.is_file() and (p.suffix in suffixes or p.name in ("Makefile", "run")) and Path(__file__) != p
    }


def test_no_file_names_a_machine_or_a_registry_host(repository: Path) -> None:
    wrong_words = re.compile(
        r"(?<![\w.~/-])/(?:work|root|home)/\w|(?<![\w.~])/tmp/\w|pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org|"
        r"proxy\.golang"
    )
    wrong = [
        f"{where}:{text.count(chr(10), 0, hit.start()) + 1} {hit.group()}"
        for where, text in tracked_texts(repository).items()
        for hit in wrong_words.finditer(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_a_reminder_in_the_code_carries_a_link(repository: Path) -> None:
    wrong = [
        f"{where}:{number} {line.strip()}"
        for where, text in tracked_texts(repository).items()
        if not where.endswith(".md")
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"\b(TODO|FIXME|XXX)\b", line) and "http" not in line
    ]
    assert not wrong, "\n".join(wrong)
