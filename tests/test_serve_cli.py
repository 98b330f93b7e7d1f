"""`hilo serve` and `hilo app`: what is refused before anything is started."""

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from hilotoken.cli.serve import read_keys, read_replicas, require


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("app", "--host", "0.0.0.0"), "--share"),
        (("app", "--device", "nonsense"), "no device"),
        (("serve", "--model", "./nowhere"), "no folder"),
        (("serve", "--device", "nonsense"), "no device"),
        (("serve", "--ray", "local", "--replicas", "3:1"), "--replicas"),
    ],
)
def test_a_wrong_option_ends_the_command_in_a_line(hilo, arguments, said):
    done = hilo(*arguments)
    assert done.code == 2
    assert said in done.err.splitlines()[-1]


def test_replicas():
    assert read_replicas("2") == (2, 2)
    assert read_replicas("1:4") == (1, 4)
    for wrong in ("0", "a", "2:1", "1:b"):
        with pytest.raises(ValueError, match="--replicas"):
            read_replicas(wrong)


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HILO_API_KEYS", "one, two,")
    assert read_keys(None) == ("one", "two")
    (tmp_path / "keys").write_text("three\n\nfour\n")
    assert read_keys(tmp_path / "keys") == ("three", "four")
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(ValueError, match="no API key"):
        read_keys(tmp_path / "keys")


def test_a_missing_extra_is_named():
    with pytest.raises(ImportError, match=r"hilotoken\[serve\]"):
        require("a_module_that_is_nowhere", "serve")
