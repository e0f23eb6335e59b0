"""Documentation says what the code says: generated pages are fresh, every code block is executed.

A fenced `sh` or `python` block carries a comment on the line before it:

    <!-- ci: serve -->                    started once, up to its URL line; the client blocks talk to it
    <!-- ci: client expects "WORDS" -->   executed against that server; its output must hold WORDS
    <!-- ci: run expects "WORDS" -->      executed alone
    <!-- ci: itself -->                   a command that .ci/run carries out
    <!-- ci: shown, REASON -->            not executed, in docs/ only
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from types import ModuleType
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [*REPOSITORY.glob("*.md"), *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- ci: ([^\n]*?) -->\n)?```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
LIMIT_S = 240.0  # one block, a start of the server included


class Block(NamedTuple):
    """One fenced block: what CI does with it, its language and code."""

    where: str
    kind: str
    expects: str
    language: str
    code: str


def read_blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for hit in BLOCK.finditer(text):
            kind, _, rest = (hit[1] or "").partition(" expects ")
            where = f"{page.relative_to(REPOSITORY)}:{text.count(chr(10), 0, hit.start()) + 1}"
            found.append(Block(where, kind, rest.strip('"'), hit[2], hit[3]))
    return found


BLOCKS = read_blocks()


def blocks(kind: str) -> list[pytest.ParameterSet]:
    return [pytest.param(block, id=block.where) for block in BLOCKS if block.kind == kind]


def environment() -> dict[str, str]:
    """This environment with the tested interpreter's commands first, and without the outer make's variables."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}


def execute(block: Block, replace: tuple[str, str] = ("", "")) -> str:
    code = block.code.replace(*replace) if replace[0] else block.code
    command = ["bash", "-euo", "pipefail", "-c", code] if block.language == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, f"{block.where} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """Start the README's own server block on a free port; SIGTERM ends it, cleanly."""
    block = next(block for block in BLOCKS if block.kind == "serve" and block.where.startswith("README"))
    command = [*shlex.split(block.code), "ARGS=--port 0"]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    timer = Timer(LIMIT_S, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        assert process.stdout is not None
        seen = []
        url = None
        while url is None and (line := process.stdout.readline()):
            seen.append(line)
            url = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert url is not None, "the server said no URL:\n" + "".join(seen)
        yield url.group()
        os.killpg(process.pid, signal.SIGTERM)
        tail, _ = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGTERM), f"exit code {process.returncode}\n{tail}"
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_generated_parts_of_a_page_are_what_the_code_says(page: Path, generate: ModuleType) -> None:
    assert page.read_text() == generate.render(page), "run `make docs` and commit what it rewrote"


def test_every_code_block_says_how_it_is_executed() -> None:
    wrong = []
    for block in BLOCKS:
        if block.language in ("text", "toml", "json"):
            continue
        known = block.kind in ("serve", "client", "run", "itself") or (
            block.kind.startswith("shown, ") and not block.where.startswith("README")
        )
        if not known or block.language not in ("sh", "python"):
            wrong.append(f"{block.where}: '{block.kind}' {block.language}")
    assert not wrong, "\n".join(wrong)


def test_links_between_pages_lead_somewhere() -> None:
    wrong = [
        f"{page.relative_to(REPOSITORY)}: {target}"
        for page in PAGES
        for target in LINK.findall(page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not wrong, "\n".join(wrong)


def test_links_into_pages_name_a_heading_of_theirs() -> None:
    wrong = []
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            text = (page.parent / target if target else page).read_text()
            headings = re.findall(r"^#+ (.*)$", re.sub(r"[`*]", "", text), re.MULTILINE)
            if anchor not in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]:
                wrong.append(f"{page.relative_to(REPOSITORY)}: {target}#{anchor}")
    assert not wrong, "\n".join(wrong)


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the words of each `headrace …` in a shell block, without comments and redirections."""
    for line in block.code.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\||;", line):
            words = shlex.split(re.sub(r"\d?>.*", "", part), comments=True)
            while words and "=" in words[0]:
                del words[0]
            if words[:1] == ["headrace"]:
                yield words[1:]


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=b.where) for b in BLOCKS if b.language == "sh" and b.kind.startswith("shown, ")]
)
def test_a_command_that_is_only_shown_is_one_that_the_program_takes(block: Block) -> None:
    from headrace.cli.entry import build_parser

    for words in commands_of(block):
        build_parser().parse_args(words)


@pytest.mark.parametrize("block", [pytest.param(b, id=b.where) for b in BLOCKS if b.language == "toml"])
def test_a_configuration_that_is_shown_can_be_loaded(block: Block, tmp_path: Path) -> None:
    from headrace.core.settings import load

    (tmp_path / "headrace.toml").write_text(block.code)
    load(tmp_path / "headrace.toml", environ={})


def test_functions_named_in_the_architecture_exist(repository: Path) -> None:
    """`package.module.Name.member` in the life of a request is looked up in the source."""
    packages = "|".join(p.parent.name for p in (repository / "headrace").glob("*/__init__.py"))
    text = (repository / "ARCHITECTURE.md").read_text().split("## The life of a request")[1].split("\n## ")[0]
    names = re.findall(rf"(?<![\w./])((?:{packages})(?:\.\w+)+)", text)
    assert len(names) > 20
    assert [name for name in names if not is_defined(repository / "headrace", name.split("."))] == []


def is_defined(folder: Path, parts: list[str]) -> bool:
    """Follow a dotted name from package to module to class to member."""
    while parts and (folder / parts[0]).is_dir():
        folder, parts = folder / parts[0], parts[1:]
    source = folder / f"{parts[0]}.py" if parts else folder / "__init__.py"
    if not source.exists():
        return False
    body = ast.parse(source.read_text()).body
    for part in parts[1:]:
        found = [
            n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and n.name == part
        ]
        if not found:
            return False
        body = found[0].body
    return True


def test_every_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    from headrace.cli.entry import main

    for name in re.findall(r"^## `headrace ([\w ]+)`", (REPOSITORY / "docs" / "cli.md").read_text(), re.MULTILINE):
        with pytest.raises(SystemExit) as ended:
            main([*name.split(), "--help"])
        assert ended.value.code == 0
        assert f"usage: headrace {name}" in capsys.readouterr().out


@pytest.mark.parametrize("block", blocks("itself"))
def test_a_command_of_ci_itself_is_in_its_script(block: Block) -> None:
    script = (REPOSITORY / ".ci" / "run").read_text().splitlines()
    assert [line for line in block.code.splitlines() if line not in script] == []


@pytest.mark.server
@pytest.mark.parametrize("block", blocks("run"))
def test_a_block_runs_alone(block: Block) -> None:
    assert block.expects in execute(block)


@pytest.mark.server
@pytest.mark.parametrize("block", blocks("client"))
def test_a_block_gets_its_answer_from_the_server(block: Block, server_url: str) -> None:
    assert block.expects in execute(block, ("http://127.0.0.1:8000", server_url))
