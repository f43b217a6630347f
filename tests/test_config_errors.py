"""The errors of gateway.toml say where, what and what to do, and never a secret."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import DEFAULT_NAME, ConfigError, describe, load

MODEL = '[[models]]\nname = "m"\n[[models.releases]]\nsource = "echo"\n'
KEY_HASH = "sha256:" + "0" * 64
TENANT = f'[[tenants]]\nname = "t"\nkeys = ["{KEY_HASH}"]\n'


def stretched(words: str) -> str:
    """Write a model whose release stretches its context."""
    return f"[[models]]\nname = 'n'\nreleases = [{{ source = 'echo', rope_scaling = {{ {words} }} }}]"


Refused = Callable[..., tuple[str, ...]]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Return the problems of a text with a model added, their file names without the folder."""

    def refused(text: str, *, model: str = MODEL, **environment: str) -> tuple[str, ...]:
        file = tmp_path / DEFAULT_NAME
        file.write_text(textwrap.dedent(text) + model)
        with pytest.raises(ConfigError) as caught:
            load(file, environment)
        return tuple(problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems)

    return refused


def test_all_mistakes_of_a_file_are_told_together(refused: Refused) -> None:
    """One run shows every mistake, each with its line, in the order of the file."""
    problems = refused(
        """\
        [server]
        lisen = "127.0.0.1:80"
        request_timeout = 30

        [batching]
        max_batch = 500
        block_tokens = 12
        token_budget = "many"

        [[tenants]]
        name = "t"
        keys = ["raw-key"]
        """,
    )

    assert [problem.split()[:2] for problem in problems] == [
        ["gateway.toml:2:", "server.lisen"],
        ["gateway.toml:3:", "server.request_timeout"],
        ["gateway.toml:6:", "batching.max_batch"],
        ["gateway.toml:7:", "batching.block_tokens"],
        ["gateway.toml:8:", "batching.token_budget"],
        ["gateway.toml:12:", "tenants[0].keys[0]"],
    ]


def test_an_error_lists_its_problems_a_line_each() -> None:
    """What the command line prints is the error's own text."""
    error = ConfigError(["a", "b"])

    assert str(error) == describe(error.problems) == "2 problems in the configuration:\n  a\n  b"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[server]\nlisen = ""', 'gateway.toml:2: server.lisen is not a setting; did you mean "listen"?'),
        ("[sever]", 'gateway.toml:1: sever is not a setting; did you mean "server"?'),
        ("[auth]\nmax_batch = 1", "gateway.toml:2: auth.max_batch is not a setting; it belongs under [batching]"),
        ('[auth]\n"a\\nb" = 1', r'auth."a\nb" is not a setting; the settings here are open'),
        ("[auth]\nxyz = 1", "gateway.toml:2: auth.xyz is not a setting; the settings here are open"),
        (
            "[batching]\nmax_batch = 257",
            "gateway.toml:2: batching.max_batch is 257; it must be a whole number, from 1 to 256",
        ),
        ("[batching]\nmax_batch = true", "batching.max_batch is true; it must be a whole number, from 1 to 256"),
        ("[batching]\nmax_batch = 8.0", "batching.max_batch is 8.0; it must be a whole number, from 1 to 256"),
        ("[auth]\nopen = 'yes'", 'auth.open is "yes"; it must be true or false'),
        ("[log]\nlevel = 'loud'", 'log.level is "loud"; it must be one of "debug", "info", "warning", "error"'),
        ("[batching]\nblock_tokens = 16.0", "batching.block_tokens is 16.0; it must be one of 16, 32, 64, 128"),
        (
            "[[models]]\nname = 'n'\nreleases = [{ source = 3 }]",
            'models[0].releases[0].source is 3; it must be "package:',
        ),
        ("[log]\nlevel = 1979-05-27", "log.level is a date or time; it must be one of"),
        (
            "[server]\nrequest_timeout = 30",
            'server.request_timeout is 30: the unit is missing, write d, h, m, s, ms, as in "30s"',
        ),
        ("[server]\nrequest_timeout = '2d'", 'server.request_timeout is "2d"; it must be a duration such as'),
        ("[server]\nmax_body = '1gb'", 'server.max_body is "1gb": that is not a unit, write TiB'),
        ("[server]\nmax_body = true", "server.max_body is true; it must be a size such as"),
        ("[server]\nlisten = ':8000'", 'server.listen is ":8000": write "host:port"'),
        ("[server]\nlisten = '[1::2::3]:1'", "what stands in brackets is not an IPv6 address"),
        ("[server]\nlisten = '127.0.0.1:65536'", "a port is 0 to 65535"),
        ("[server]\nallowed_hosts = 'a'", 'server.allowed_hosts is "a"; it must be an array, each item a host name'),
        ("[server]\nallowed_hosts = ['a', 3]", "gateway.toml:2: server.allowed_hosts[1] is 3; it must be a host name"),
        ("server = 3", "gateway.toml:1: server is 3; it must be a table, under [server]"),
        ("[tenants]", "gateway.toml:1: tenants is a table; it must be an array of tables, each under [[tenants]]"),
        ("tenants = [3]", "gateway.toml:1: tenants[0] is 3; it must be a table"),
        ("[worker]\nrunner = 'cuda'", 'worker.runner is "cuda"; it must be one of "auto", "native", "torch"'),
        (stretched("type = 'yarn'"), 'rope_scaling.factor is 1 while type is "yarn"; write "linear" or "yarn" with'),
        (stretched("factor = 4"), 'rope_scaling.factor is 4 while type is "none"; write'),
        (stretched("type = 'yarn', factor = '4'"), 'rope_scaling.factor is "4"; it must be a number, from 1 to 64'),
        (stretched("type = 'yarn', factor = nan"), "rope_scaling.factor is NaN; it must be a number, from 1 to 64"),
        (
            "[[tenants]]\nname = 't'\nkeys = []",
            "gateway.toml:3: tenants[0].keys has 0 of at least 1; it must be an array",
        ),
        (
            f"[[tenants]]\nkeys = ['{KEY_HASH}']",
            "gateway.toml:1: tenants[0].name is missing; it must be letters, digits and",
        ),
        (
            "[server]\nrun_dir = '${NOPE}'",
            "gateway.toml:2: server.run_dir needs the environment variable NOPE, which is not set",
        ),
        ("[server]\nrun_dir = '${NOPE'", 'server.run_dir has "${" without the name of a variable and "}"'),
        (
            "[server]\nadmin_token = 'file:gone'",
            'server.admin_token is "file:gone", which cannot be read: No such file or directory',
        ),
        ("[server]\nadmin_token = 'a b'", "it must be visible ASCII characters without spaces"),
    ],
)
def test_an_error_says_where_what_and_what_to_do(refused: Refused, text: str, problem: str) -> None:
    """Each mistake alone gives one problem that names the line, the key, what was found and what is allowed."""
    (found,) = refused(text + "\n")

    assert problem in found


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9000", "ftp://h/v1", "http://", "http://k:p@h/v1", "http://h/v1?k=1", "http://h:x"]
)
def test_a_url_of_another_form_is_refused(refused: Refused, url: str) -> None:
    """A server's address is checked before anything is started; a key in it is refused."""
    (found,) = refused("", model=MODEL.replace('source = "echo"', f'url = "{url}"'))

    assert found.startswith('gateway.toml:4: models[0].releases[0].url is "')


@pytest.mark.parametrize(
    ("release", "problem"),
    [
        ("", "gateway.toml:3: models[0].releases[0].source is missing; a release has either source"),
        ('url = "http://h"\nsource = "echo"', "gateway.toml:5: models[0].releases[0].source is given beside url"),
        ('url = "http://h"\nreplicas = 2', "gateway.toml:5: models[0].releases[0].replicas is for workers"),
        ('source = "echo"\napi_key = "k"', "gateway.toml:3: models[0].releases[0] has api_key"),
        ('url = "http://h"\nheaders = ["a b: c"]', "gateway.toml:5: models[0].releases[0].headers[0] is a text (not"),
        ('url = "http://h"\napi_key = "a b"', "gateway.toml:5: models[0].releases[0].api_key is a text (not"),
    ],
)
def test_a_release_is_either_ours_or_another_server_s(refused: Refused, release: str, problem: str) -> None:
    """What is said of a worker and of a server at once contradicts itself; secrets are not shown."""
    (found,) = refused("", model=MODEL.replace('source = "echo"', release))

    assert found.startswith(problem)


@pytest.mark.parametrize(
    "source", ["", "https://example.org/m.gguf", "package:", "package:llm", "package:a-b/c", "package:a/../c"]
)
def test_a_source_of_another_form_is_refused(refused: Refused, source: str) -> None:
    """The form of a source is checked before any worker is started."""
    (found,) = refused("", model=MODEL.replace("echo", source))

    assert found.startswith(f'gateway.toml:4: models[0].releases[0].source is "{source}"')
    assert 'it must be "package:NAME/FILE"' in found


@pytest.mark.parametrize(
    ("model", "path"),
    [("", "gateway.toml: models is missing"), ('[[models]]\nname = "m"', "models[0].releases is missing")],
)
def test_a_model_and_a_release_are_needed(refused: Refused, model: str, path: str) -> None:
    """A gateway without anything to call is a mistake, told before it starts."""
    (found,) = refused("", model=model)

    assert path in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nlisten = '0.0.0.0:8000'", "either add [[tenants]] with keys, or write open = true under [auth]"),
        ("[server]\nlisten = '127.0.0.1:8001'", 'server.admin_listen is "127.0.0.1:8001" while listen is'),
        ("[server]\nlisten = 'localhost:8001'", "give them different ports"),
        ("[server]\nadmin_listen = '0.0.0.0:8000'", "give them different ports"),
        ("[batching]\ntoken_budget = 31", "batching.token_budget is 31, less than max_batch = 32"),
        ("[worker]\nrestart_backoff_max = '100ms'", "worker.restart_backoff_max is shorter than restart_backoff"),
        (
            TENANT + "models = ['n']",
            'tenants[0].models[0] is "n"; no model or alias has that name; name one of [[models]]',
        ),
        (TENANT + TENANT.replace("'t'", "u").replace("0", "1"), "tenants[1].name is the same as tenants[0].name"),
        (
            TENANT + TENANT.replace('"t"', '"u"'),
            "tenants[1].keys[0] is the same as tenants[0].keys[0]; give each its own",
        ),
        (MODEL, "models[1].name is the same as models[0].name"),
        (MODEL.replace('"m"', '"n"\naliases = ["m"]'), "models[1].name is the same as models[0].aliases[0]"),
        (
            MODEL.replace('"m"', '"n"') + "[[models.releases]]\nsource = 'echo'",
            "models[0].releases[1].name is the same as",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(refused: Refused, text: str, problem: str) -> None:
    """Values that are allowed alone but not together are one problem that names both."""
    (found,) = refused(text + "\n")

    assert problem in found


def test_a_consequence_of_a_mistake_is_not_told(refused: Refused) -> None:
    """A broken tenant does not also count as a missing one, nor a broken model as an unknown one."""
    text = "[server]\nlisten = '0.0.0.0:1'\n" + TENANT.replace(KEY_HASH, "raw") + "models = ['n']\n"

    problems = refused(text, model=MODEL.replace('"m"', '"m m"'))

    assert [problem.split()[1] for problem in problems] == ["tenants[0].keys[0]", "models[0].name"]


def test_tables_of_the_wrong_type_have_no_names_in_common(refused: Refused) -> None:
    """Two broken models are not also two models of the same name."""
    problems = refused("models = [3, 3]\n", model="")

    assert [problem.split()[1] for problem in problems] == ["models[0]", "models[1]"]


def test_unrelated_rules_are_checked_beside_broken_values(refused: Refused) -> None:
    """A broken value hides only what was compared with it."""
    problems = refused("[server]\nlisten = 1\n[batching]\ntoken_budget = 1\n" + MODEL + MODEL.replace('"m"', '"m m"'))

    assert [problem.split()[1] for problem in problems] == [
        "server.listen",
        "batching.token_budget",
        "models[1].name",
        "models[2].name",
    ]


@pytest.mark.parametrize("keys", ["'hunter2'", "['hunter2']", "['${KEY}']", "[['hunter2']]", "{ hunter2 = 1 }"])
def test_a_pasted_key_is_not_repeated(refused: Refused, keys: str) -> None:
    """Whoever pastes a key is told to hash it, and no log will hold it."""
    (found,) = refused(f"[[tenants]]\nname = 't'\nkeys = {keys}\n", KEY="hunter2")

    assert "hunter2" not in found
    assert "hash it with `tidegate keys hash`" in found


def test_the_value_of_a_variable_is_never_shown(refused: Refused) -> None:
    """An error shows what stands in the file: the environment may hold secrets."""
    (found,) = refused("[server]\nlisten = '${TOKEN}'\n", TOKEN="hunter2")

    assert '"${TOKEN}"' in found
    assert "hunter2" not in found


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "is empty"), (b"\n", "is empty"), (b"\xff", "is not a file of UTF-8 text")]
)
def test_a_secret_file_must_hold_a_text(refused: Refused, tmp_path: Path, content: bytes, problem: str) -> None:
    """An empty token would otherwise become a random one, unnoticed."""
    (tmp_path / "token").write_bytes(content)

    (found,) = refused("[server]\nadmin_token = 'file:token'\n")

    assert found.endswith(problem)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names the file that was looked for."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / DEFAULT_NAME)

    assert caught.value.problems == (f"{tmp_path / DEFAULT_NAME}: there is no such file; write one, or name another",)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    """What cannot be read gives the reason of the system."""
    with pytest.raises(ConfigError, match="it cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nlisten = \n", "gateway.toml:2:10: it is not valid TOML: Invalid value"),
        ("[server]\nlisten = '", "gateway.toml:2:11: it is not valid TOML: Expected"),
        ("a = 1\na = 2\n", "gateway.toml:2:6: it is not valid TOML: Cannot overwrite a value"),
        (f"a = {'9' * 5000}\n", "gateway.toml: it is not valid TOML: Exceeds the limit"),
    ],
)
def test_what_is_not_toml_is_shown_by_line_and_column(refused: Refused, text: str, problem: str) -> None:
    """A mistake of the syntax has the same shape, with the column where editors look for it."""
    (found,) = refused(text, model="")

    assert found.startswith(problem)


def test_what_is_not_utf8_is_shown_by_line(tmp_path: Path) -> None:
    """A file in another encoding is told as such."""
    (tmp_path / DEFAULT_NAME).write_bytes(b"# a\n# \xe4\n")

    with pytest.raises(ConfigError, match=r"gateway\.toml:2: it is not UTF-8 text"):
        load(tmp_path / DEFAULT_NAME)
