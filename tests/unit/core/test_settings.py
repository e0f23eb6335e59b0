"""Settings from file, environment and command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.errors import ConfigError
from headrace.core.settings import Settings, load, read_secret, setting_fields


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
        ("models = []\n", ["'models'", "[upstreams.NAME]"]),
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


UPSTREAM = '[upstreams.big]\nurl = "http://h/v1"\nmodels = { a = "b" }\n'


def test_upstreams_are_tables_and_replace_the_default_model(write) -> None:  # type: ignore[no-untyped-def]
    settings = load(write(UPSTREAM + 'profile = "vllm"\nweight = 2\n'), {})
    assert settings.upstreams["big"].models == {"a": "b"}
    assert settings.upstreams["big"].weight == 2.0
    assert settings.models == ()
    with pytest.raises(ConfigError, match="remote upstream"):
        assert settings.first_model


def test_models_beside_upstreams_are_served_too(write) -> None:  # type: ignore[no-untyped-def]
    assert load(write('models = ["x"]\n' + UPSTREAM), {}).models == ("x",)
    assert load(write(UPSTREAM), {"HEADRACE_MODELS": "x"}).models == ("x",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (UPSTREAM + "wieght = 1\n", ["'upstreams.big.wieght'", "'weight'"]),
        (UPSTREAM + 'profile = "vlm"\n', ["upstreams.big.profile = 'vlm'", "one of", "vllm"]),
        (UPSTREAM + 'reported_cost = "yes"\n', ["it must be one of note, charge, ignore"]),
        (UPSTREAM + "weight = 0\n", ["[upstreams.big]", "weight"]),
        ('[upstreams.big]\nurl = "http://h"\n', ["[upstreams.big]", "models"]),
        ("upstreams = 5\n", ["[upstreams.NAME]"]),
        ("[upstreams]\nbig = 5\n", ["[upstreams.big]"]),
        (UPSTREAM + 'headers = { Authorization = "x" }\n', ["upstreams.big.api_key"]),
    ],
)
def test_faults_of_upstreams_name_table_and_key(write, text: str, said: list[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as caught:
        load(write(text), {})
    assert all(word in caught.value.message for word in said)


def test_a_key_in_the_file_is_refused_without_being_shown(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="env:NAME") as caught:
        load(write(UPSTREAM + 'api_key = "sk-secret"\n'), {})
    assert "sk-secret" not in caught.value.message


def test_secrets_are_read_from_environment_and_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("  from-file\n")
    assert read_secret("env:K", {"K": "from-env"}) == "from-env"
    assert read_secret(f"file:{tmp_path / 'key'}") == "from-file"
    (tmp_path / "two").write_text("a\nb\n")
    for place in ("env:NONE", f"file:{tmp_path / 'none'}", f"file:{tmp_path / 'two'}"):
        with pytest.raises(ConfigError) as caught:
            read_secret(place, {})
        assert place.partition(":")[2] in caught.value.message


def test_lists_are_written_with_commas_in_the_environment_and_on_the_command_line() -> None:
    origins = ("https://a.example", "https://b.example")
    text = "https://a.example, https://b.example"
    assert load(environ={"HEADRACE_SERVER__CORS_ORIGINS": text}).server.cors_origins == origins
    assert load(environ={}, overrides={"server.cors_origins": text}).server.cors_origins == origins


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nport = 1\n\n[engine]\nthread = 2\n", ":5; did you mean 'engine.threads'"),
        ("[server]\nport = 'x'\n", ":2 is not valid"),
        ("[server]\n\n[engine]\nkv_dtype = 'int9'\n", ":4 is not valid: it must be one of auto, bf16, int8"),
        ("modles = ['a']\n", ":1; did you mean 'models'"),
        ("[gateway.prices]\n'a.b' = 1\n", ":1 is not valid"),
        ("[upstreams.far]\nurl = 'http://x'\nmodles = {a = 'b'}\n", ":3; did you mean 'models'"),
        ("[upstreams.far]\nurl = 'http://x'\nmodels = {a = 'b'}\napi_key = 'sk'\n", r"env:NAME.*:4\)"),
        ("server.prot = 1\n", ":1; did you mean 'server.port'"),
    ],
)
def test_errors_name_file_line_and_nearest_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(path, environ={})
    assert str(path) in caught.value.message
