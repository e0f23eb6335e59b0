"""Settings from file, environment and command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.errors import ConfigError
from headrace.core.settings import Settings, load, setting_fields


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def to_file(text: str) -> Path:
        path = tmp_path / "headrace.toml"
        path.write_text(text)
        return path

    return to_file


def test_defaults_stand_alone() -> None:
    assert load(environ={}) == Settings()


def test_later_sources_win(write) -> None:  # type: ignore[no-untyped-def]
    path = write('models = ["a"]\n[server]\nport = 1\nhost = "::1"\n[engine]\nthreads = 1\nmax_num_seqs = 5\n')
    env = {"HEADRACE_SERVER__PORT": "2", "HEADRACE_ENGINE__THREADS": "2", "HEADRACE_MODELS": "b, c"}
    settings = load(path, env, {"engine.threads": "3", "server.host": None})
    assert (settings.server.port, settings.server.host) == (2, "::1")
    assert (settings.engine.threads, settings.engine.max_num_seqs) == (3, 5)
    assert settings.models == ("b", "c")


def test_environment_may_name_the_file(write) -> None:  # type: ignore[no-untyped-def]
    path = write("[server]\nport = 77\n")
    assert load(environ={"HEADRACE_CONFIG": str(path)}).server.port == 77


def test_variables_of_a_kubernetes_service_are_not_ours() -> None:
    env = {"HEADRACE_PORT": "tcp://10.0.0.1:80", "HEADRACE_SERVICE_HOST": "10.0.0.1", "HEADRACE_PORT_80_TCP": "x"}
    assert load(environ=env) == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1\n", ["'server.prot'", "'server.port'"]),
        ("[sever]\nport = 1\n", ["'sever.port'", "'server.port'"]),
        ("server = 1\n", ["'server'"]),
        ("[server]\nport = 70000\n", ["server.port", "70000", "65535"]),
        ("[server]\nport = '80'\n", ["server.port", "Expected `int`"]),
        ("[engine]\nbackend = 'gpu'\n", ["engine.backend", "gpu"]),
        ("models = []\n", ["models", "length"]),
        ("port =\n", ["not TOML"]),
    ],
)
def test_file_errors_name_file_key_and_what_is_near(write, text: str, said: list[str]) -> None:  # type: ignore[no-untyped-def]
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert all(word in caught.value.message for word in [*said, str(path)])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such"):
        load(tmp_path / "no-such.toml", {})


def test_unknown_variable_and_flag_are_errors() -> None:
    with pytest.raises(ConfigError, match="HEADRACE_SERVER__PORT"):
        load(environ={"HEADRACE_SEVER__PORT": "1"})
    with pytest.raises(ConfigError, match=r"engine\.threads"):
        load(environ={}, overrides={"engine.thread": 1})


def test_a_wrong_key_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={}, overrides={"server.api_key": ["top-secret"]})
    assert "top-secret" not in caught.value.message


def test_every_setting_has_help() -> None:
    fields = setting_fields()
    assert [leaf.key for leaf in fields if not leaf.help] == []
    assert len({leaf.name for leaf in fields}) == len(fields)  # a flag each
