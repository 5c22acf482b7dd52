"""TLS contexts for both ends, made of PEM files. Every error names the file that is wrong."""

import ssl
from pathlib import Path

from jaxserve.errors import ConfigError

_BEGIN = {
    "certificate": ("-----BEGIN CERTIFICATE-----", "-----BEGIN TRUSTED CERTIFICATE-----"),
    "key": ("PRIVATE KEY-----",),
}
_ENCRYPTED = ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED")


def client_context(
    *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """What a client needs to speak TLS: the server's certificate must be for the name that it is called by.

    Args:
        ca: certificates of the authorities to trust; None for those of the system.
        certificate: the client's own, where the server wants to see one.
        key: of that certificate.

    Raises:
        ConfigError: a file is missing or is not what it should be.
    """
    context = ssl.create_default_context() if ca is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is not None:
        trust(context, ca)
    if certificate is not None and key is not None:
        load_own(context, certificate, key)
    elif certificate is not None or key is not None:
        raise ConfigError("a client's certificate needs its key, and the key its certificate; give both or neither")
    return context


def load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Makes a context show a certificate, with those of its authorities behind it in the same file perhaps.

    Raises:
        ConfigError: a file is missing or is not what it should be, or they do not belong together.
    """
    read_pem(certificate, "certificate")
    if any(mark in read_pem(key, "key") for mark in _ENCRYPTED):
        raise ConfigError(
            f"the key {key} is encrypted, and nobody is asked for its pass phrase; write it without one "
            f"(openssl pkey -in {key} -out NEW) into a file that only its user may read"
        )
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"the key {key} does not belong to the certificate {certificate}; give the one that it was made with"
            ) from error
        raise ConfigError(
            f"the certificate {certificate} or the key {key} is damaged: it cannot be read as PEM; write it anew"
        ) from error


def trust(context: ssl.SSLContext, ca: Path) -> None:
    """Makes a context believe certificates of these authorities.

    Raises:
        ConfigError: the file is missing or is not what it should be.
    """
    read_pem(ca, "certificate")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ConfigError(f"the certificate {ca} is damaged: it cannot be read as PEM; write it anew") from error


def read_pem(path: Path, kind: str) -> str:
    """The text of a PEM file, with the `kind` in it: `certificate` or `key`.

    Raises:
        ConfigError: there is no such file, or no such thing in it.
    """
    try:
        text = path.read_bytes().decode("latin-1")
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the {kind} {path} cannot be read ({reason}); give the path of a PEM file") from error
    if not any(mark in text for mark in _BEGIN[kind]):
        raise ConfigError(f"{path} holds no {kind} in PEM form; give a file with a line {_BEGIN[kind][0]!r} in it")
    return text
