"""Settings: where they come from and what is refused."""

from pathlib import Path

import pytest

from firebrick.config import Config, load_config
from firebrick.model.errors import Invalid


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    """A setting in the environment is stronger than the same in the file, and options are stronger than both."""
    (tmp_path / "firebrick.toml").write_text("api_port = 3100\nwarm_count = 5\n")
    environ = {"FIREBRICK_DATA_DIR": str(tmp_path), "FIREBRICK_API_PORT": "3200"}
    assert load_config(environ).api_port == 3200
    assert load_config(environ).warm_count == 5
    assert load_config(environ, api_port=3300).api_port == 3300


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"FIREBRICK_API_PROT": "1"}, "Unknown setting 'api_prot'"),
        ({"FIREBRICK_API_PORT": "many"}, "must be a int"),
        ({"FIREBRICK_API_PORT": "70000"}, "from 1 to 65535"),
        ({"FIREBRICK_API_PORT": "3002"}, "different ports"),
        ({"FIREBRICK_RUNTIME": "docker"}, "must be auto, firecracker"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, environ: dict[str, str], told: str) -> None:
    """An unknown key, a wrong type or an impossible value is refused with a message that names it."""
    with pytest.raises(Invalid, match=told):
        load_config({"FIREBRICK_DATA_DIR": str(tmp_path)} | environ)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """A settings file that is not TOML is refused with its path."""
    (tmp_path / "firebrick.toml").write_text("api_port = = 3\n")
    with pytest.raises(Invalid, match=r"firebrick\.toml is not valid TOML"):
        load_config({"FIREBRICK_DATA_DIR": str(tmp_path)})


def test_a_domain_is_given_when_none_is_set() -> None:
    """Without a domain, host names end in one that means this machine and the edge's port."""
    assert Config(edge_port=4002).sandbox_domain == "sandbox.localhost:4002"
    assert Config(domain="box.example").sandbox_domain == "box.example"


def test_deadlines_follow_the_patience() -> None:
    """A slow machine's deadlines are all longer by one ratio; a usual one's are as they stand in the code."""
    assert Config().patient_s(30.0) == 30.0
    assert Config(patience=10.0).patient_s(30.0) == 300.0
