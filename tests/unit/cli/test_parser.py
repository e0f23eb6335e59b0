"""What the command line says to those who mistype: one line, the nearest word, where to look."""

from __future__ import annotations

import pytest

from headrace.cli.entry import main


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["srve"], "headrace: unknown command 'srve'; did you mean 'serve'? see `headrace --help`"),
        (["serve", "--prot", "80"], "headrace serve: unknown option '--prot'; did you mean '--port'? see"),
        (
            ["bench", "http", "--clinets=3"],
            "headrace bench http: unknown option '--clinets=3'; did you mean '--clients'?",
        ),
        (["--prt", "doctor"], "headrace: unknown option '--prt'; see `headrace --help`"),
        (["bench", "http", "--clients", "x"], "headrace bench http: argument --clients: invalid int value: 'x'; see"),
        (["eval", "zzz"], "headrace eval: unknown measure 'zzz'; choose from kl, ppl; see `headrace eval --help`"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line_by_the_command_that_read_it(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.err.startswith(line)
    assert (told.err.count("\n"), told.out) == (1, "")


def test_no_command_at_all_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "serve models over the OpenAI API" in capsys.readouterr().err
