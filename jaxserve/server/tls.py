"""The server's side of TLS: its certificate and key, and whose certificates its clients must show."""

import contextlib
import dataclasses
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from jaxserve.errors import ConfigError
from jaxserve.protocols.tls import load_own, trust

_DAY_S = 24 * 3600.0
_SOON_S = 14 * _DAY_S


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files that a server speaks TLS with.

    Attributes:
        certificate: the server's, and behind it those of its authorities, as far as clients do not have them.
        key: of the certificate, not encrypted.
        client_ca: certificates of authorities; a client must then show a certificate of one of them (mutual TLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> tuple[str, ...]:
        """Looks whether clients will take the certificate.

        Returns:
            Warnings, each in one line.

        Raises:
            ConfigError: a file is missing or is not what it should be, or the certificate is not valid now.
        """
        self.context()
        warnings: list[str] = []
        mode = self.key.stat().st_mode
        if mode & 0o007:
            warnings.append(
                f"everybody on this machine may read the key {self.key} (mode {mode & 0o777:o}); chmod 600 {self.key}"
            )
        left_s = _last_second(self) - time.time()
        if left_s < _SOON_S:
            warnings.append(
                f"the certificate {self.certificate} expires in {left_s / _DAY_S:.1f} days; renew it, and have the "
                f"server read it again (SIGHUP)"
            )
        return tuple(warnings)

    def context(self, *, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """What a listener needs.

        Args:
            alpn: protocols that are offered to clients who ask [RFC 7301]: `http/1.1` for HTTP.

        Raises:
            ConfigError: a file is missing or is not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        load_own(context, self.certificate, self.key)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            trust(context, self.client_ca)
        return context


class Tls:
    """TLS of a server: what its listeners need, and one `reload` for them all.

    Args:
        files: the certificate, its key, and whose certificates clients must show.

    Raises:
        ConfigError: as `TlsFiles.check`.
    """

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self.warnings = files.check()
        """What is wrong with the files, each in one line; as of the last time that they were read."""
        self._contexts: list[ssl.SSLContext] = []
        self._client_ca = None if files.client_ca is None else files.client_ca.read_bytes()
        self._configuration = self._for_grpc()

    @property
    def is_mutual(self) -> bool:
        """Whether clients must show a certificate."""
        return self.files.client_ca is not None

    def context(self, *, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """What one listener needs: see `TlsFiles.context`."""
        context = self.files.context(alpn=alpn)
        self._contexts.append(context)
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """What one gRPC port needs."""
        told = self._configuration

        def renewed() -> Any:
            """What gRPC asks for before every handshake, in a thread of its own: None where nothing has changed."""
            nonlocal told
            if told is self._configuration:
                return None
            told = self._configuration
            return told

        return grpc.dynamic_ssl_server_credentials(told, renewed, require_client_authentication=self.is_mutual)

    def reload(self) -> None:
        """Shows the certificate that is in the files now to whoever connects from now on.

        The authorities of clients stay as they were.

        Raises:
            ConfigError: as `TlsFiles.check`; everything stays as it was.
        """
        self.warnings = self.files.check()
        for context in self._contexts:
            load_own(context, self.files.certificate, self.files.key)
        self._configuration = self._for_grpc()

    def _for_grpc(self) -> grpc.ServerCertificateConfiguration:
        pair = (self.files.key.read_bytes(), self.files.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=self._client_ca)


def _last_second(files: TlsFiles) -> float:
    """When the certificate expires, in seconds since 1970.

    OpenSSL's opinion is asked for by a handshake with oneself, in memory, in which the client trusts this one
    certificate: the standard library reads a certificate only where it verifies it.

    Raises:
        ConfigError: it has expired, is not valid yet, or is not one for a server.
    """
    server = dataclasses.replace(files, client_ca=None).context()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trust(client, files.certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_side=False), server.wrap_bio(there, back, server_side=True)]
    try:
        for end in 5 * ends:  # more often than either must be asked
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(_refused(files.certificate, error)) from error
    shown = ends[0].getpeercert()
    assert shown is not None
    return ssl.cert_time_to_seconds(str(shown["notAfter"]))


def _refused(certificate: Path, error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            return f"the certificate {certificate} has expired; renew it"
        case 9:  # X509_V_ERR_CERT_NOT_YET_VALID
            return f"the certificate {certificate} is not valid yet; wait, or set this machine's clock"
        case _:
            return f"clients will refuse the certificate {certificate}: {error.verify_message}; get another one"
