"""The local certificate authority: what it signs, when it is made anew, who may read its key."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from firebrick.config import Config
from firebrick.model.errors import Invalid
from firebrick.supervisor.certificates import RENEW_DAYS, ensure_certificates, tls_files
from tests.support.manual_clock import ManualClock

NOW = datetime.now(UTC)


def made(config: Config, *, days: float = 0) -> tuple[x509.Certificate, x509.Certificate]:
    """The authority's and the edge's certificate after that many days."""
    files = ensure_certificates(config, ManualClock(NOW + timedelta(days=days)))
    assert files.ca is not None
    ca, edge = (x509.load_pem_x509_certificate(path.read_bytes()) for path in (files.ca, files.certificate))
    edge.verify_directly_issued_by(ca)
    return ca, edge


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(data_dir=tmp_path, tls_port=3443)


def test_the_edge_is_named_by_the_domain_and_the_authority_bound_to_it(config: Config) -> None:
    """Sandboxes' names and the API's match; the authority can sign nothing outside the domain."""
    ca, edge = made(config)
    names = edge.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["*.sandbox.localhost", "sandbox.localhost"]
    bound = ca.extensions.get_extension_for_class(x509.NameConstraints)
    assert (bound.critical, bound.value.permitted_subtrees) == (True, [x509.DNSName("sandbox.localhost")])


def test_keys_are_private_and_the_bundle_keeps_what_the_machine_trusts(config: Config) -> None:
    """Mode 0600; the bundle is the system's with one certificate more."""
    made(config)
    files = tls_files(config)
    assert files.ca is not None
    assert files.bundle is not None
    for key in (files.key, files.ca.with_suffix(".key")):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    ours, system = ssl.create_default_context(cafile=str(files.bundle)), ssl.create_default_context()
    ours.load_default_certs()
    assert len(ours.get_ca_certs()) == len(system.get_ca_certs()) + 1


def test_a_second_time_changes_nothing(config: Config) -> None:
    """Clients go on trusting what they have."""
    assert made(config) == made(config, days=1)


def test_the_edges_certificate_is_renewed_in_time_by_the_same_authority(config: Config) -> None:
    """When 30 days are left."""
    ca, edge = made(config)
    later_ca, later = made(config, days=800 - RENEW_DAYS + 1)
    assert later_ca == ca
    assert later != edge


def test_another_domain_has_another_authority(config: Config, tmp_path: Path) -> None:
    """The old one is bound to the old name."""
    ca, _ = made(config)
    other, edge = made(Config(data_dir=tmp_path, tls_port=3443, domain="boxes.example.com:3443"))
    assert other != ca
    assert "boxes.example.com" in edge.subject.rfc4514_string()


def test_a_damaged_authority_is_told(config: Config) -> None:
    """Made anew by itself it would break every client's trust without a word."""
    made(config)
    ca = tls_files(config).ca
    assert ca is not None
    ca.write_text("nonsense")
    with pytest.raises(Invalid, match="damaged"):
        ensure_certificates(config, ManualClock(NOW))


def test_an_own_certificate_is_left_alone(tmp_path: Path) -> None:
    """Nothing is made, and there is no authority to trust."""
    config = Config(data_dir=tmp_path, tls_port=443, tls_certificate="/etc/x.pem", tls_key="/etc/x.key")
    files = ensure_certificates(config, ManualClock(NOW))
    assert (str(files.certificate), files.ca, list(tmp_path.iterdir())) == ("/etc/x.pem", None, [])
