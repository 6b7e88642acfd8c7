"""The local certificate authority of an instance, and the edge's certificate: made once, renewed when it is time.

<data_dir>/tls/ca.pem, ca.key      ten years; may sign names below the sandbox domain only
               edge.pem, edge.key  *.<domain> and <domain>, 800 days; anew when 30 are left or the domain changed
               bundle.pem          this machine's trusted certificates and ours: for clients whose setting replaces
                                   the system's (SSL_CERT_FILE, REQUESTS_CA_BUNDLE)
"""

import os
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from firebrick.clock import Clock
from firebrick.config import Config
from firebrick.model.errors import Invalid

CA_DAYS, EDGE_DAYS, RENEW_DAYS = 3650, 800, 30
"""Apple's systems refuse a server's certificate that lives longer than 825 days."""
SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What the edge serves with; `ca` and `bundle` None for a certificate that the owner brought."""

    certificate: Path
    key: Path
    ca: Path | None = None
    bundle: Path | None = None


def tls_files(config: Config) -> TlsFiles:
    """Where they are; whether they exist is not looked at."""
    if config.tls_certificate:
        return TlsFiles(certificate=Path(config.tls_certificate), key=Path(config.tls_key))
    home = config.data_dir / "tls"
    return TlsFiles(
        certificate=home / "edge.pem", key=home / "edge.key", ca=home / "ca.pem", bundle=home / "bundle.pem"
    )


def ensure_certificates(config: Config, clock: Clock) -> TlsFiles:
    """Make or renew what is missing or old; nothing for a certificate that the owner brought.

    Raises: Invalid — the CA's files are damaged.
    """
    files = tls_files(config)
    if files.ca is None or files.bundle is None:
        return files
    files.ca.parent.mkdir(parents=True, exist_ok=True)
    now, domain = clock.now(), config.sandbox_domain.partition(":")[0].lower()
    ca, ca_key = _authority(files.ca, files.ca.with_suffix(".key"), domain, now)
    if not _is_good(files, ca, domain, now):
        key = ec.generate_private_key(ec.SECP256R1())
        _write(files.key, _key_pem(key), mode=0o600)
        _write(files.certificate, _pem(_edge_certificate(ca, ca_key, key, domain, now)), mode=0o644)
    _write(files.bundle, _system_bundle() + _pem(ca), mode=0o644)
    return files


def _authority(path: Path, key_path: Path, domain: str, now: datetime) -> tuple[x509.Certificate, Key]:
    """The CA; made anew when there is none or the domain has changed, because its old one binds it."""
    if path.exists() and key_path.exists():
        try:
            ca = x509.load_pem_x509_certificate(path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        except ValueError as exc:
            raise Invalid(
                f"The local certificate authority {path} is damaged. Remove {path.parent} and start anew."
            ) from exc
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        if _ca_subject(domain) == ca.subject and ca.not_valid_after_utc > now + timedelta(days=RENEW_DAYS):
            return ca, key
    key = ec.generate_private_key(ec.SECP256R1())
    ca = (
        _builder(_ca_subject(domain), _ca_subject(domain), key, now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            # Whoever trusts this authority trusts it for nothing else, even if its key is stolen.
            x509.NameConstraints(permitted_subtrees=[x509.DNSName(domain)], excluded_subtrees=None),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _key_pem(key), mode=0o600)
    _write(path, _pem(ca), mode=0o644)
    return ca, key


def _edge_certificate(ca: x509.Certificate, ca_key: Key, key: Key, domain: str, now: datetime) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"*.{domain}"[:64])])
    names = x509.SubjectAlternativeName([x509.DNSName(f"*.{domain}"), x509.DNSName(domain)])
    return (
        _builder(subject, ca.subject, key, now, EDGE_DAYS)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: Key, now: datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A client's clock may be behind ours.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _ca_subject(domain: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Firebrick local certificate authority"),
            x509.NameAttribute(NameOID.COMMON_NAME, domain[:64]),
        ]
    )


def _is_good(files: TlsFiles, ca: x509.Certificate, domain: str, now: datetime) -> bool:
    """Whether the edge's certificate is there, ours, for this domain and valid for a while."""
    try:
        found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        found.verify_directly_issued_by(ca)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return f"*.{domain}" in names.get_values_for_type(x509.DNSName) and (
        found.not_valid_after_utc > now + timedelta(days=RENEW_DAYS)
    )


def _system_bundle() -> bytes:
    for name in (ssl.get_default_verify_paths().cafile, *SYSTEM_BUNDLES):
        if name and Path(name).is_file():
            return Path(name).read_bytes().rstrip() + b"\n"
    return b""


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """Complete or not at all, and never readable by more than `mode` says."""
    if path.exists() and path.read_bytes() == content:
        return
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as sink:
        sink.write(content)
    fresh.rename(path)
