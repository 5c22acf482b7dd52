"""TLS: files that are wrong, contexts that are right, and certificates that are renewed while a server runs."""

import asyncio
import datetime
import ssl
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jaxserve.errors import ConfigError
from jaxserve.protocols.tls import client_context
from jaxserve.server.tls import Tls, TlsFiles
from tests.certificates import authority, issue, write_authority


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    write_authority(directory)
    issue(directory, "good")
    issue(directory, "other")
    issue(directory, "expired", days=(-10, -1))
    issue(directory, "future", days=(1, 10))
    issue(directory, "soon", days=(-1, 3.5))
    issue(directory, "client", "client.test")
    (directory / "damaged.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    (directory / "damaged.key").write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    (directory / "binary.pem").write_bytes(bytes(range(256)))
    key = serialization.load_pem_private_key((directory / "good.key").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    (directory / "locked.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    return directory


def files(directory: Path, certificate: str = "good.pem", key: str = "good.key", ca: str | None = None) -> TlsFiles:
    return TlsFiles(
        certificate=directory / certificate, key=directory / key, client_ca=None if ca is None else directory / ca
    )


# Files


@pytest.mark.parametrize("ca", [None, "authority.pem"])
def test_good_files(directory, ca):
    assert files(directory, ca=ca).check() == ()
    tls = Tls(files(directory, ca=ca))
    assert tls.is_mutual is (ca is not None)
    context = tls.context(alpn=("http/1.1",))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == (ssl.CERT_NONE if ca is None else ssl.CERT_REQUIRED)
    assert isinstance(tls.grpc_credentials(), grpc.ServerCredentials)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"certificate": "none.pem"}, r"the certificate .*none\.pem cannot be read \(No such file or directory\)"),
        ({"key": "none.key"}, r"the key .*none\.key cannot be read"),
        ({"ca": "none.pem"}, r"the certificate .*none\.pem cannot be read"),
        ({"certificate": "."}, r"cannot be read \(Is a directory\)"),
        ({"certificate": "nul\0.pem"}, "cannot be read"),
        ({"certificate": "good.key"}, r"good\.key holds no certificate in PEM form; .*-----BEGIN CERTIFICATE-----"),
        ({"certificate": "binary.pem"}, r"binary\.pem holds no certificate in PEM form"),
        ({"key": "good.pem"}, r"good\.pem holds no key in PEM form"),
        ({"certificate": "damaged.pem"}, r"the certificate .*damaged\.pem or the key .*good\.key is damaged"),
        ({"key": "damaged.key"}, r"the key .*damaged\.key is damaged"),
        ({"ca": "damaged.pem"}, r"the certificate .*damaged\.pem is damaged"),
        ({"key": "other.key"}, r"the key .*other\.key does not belong to the certificate .*good\.pem"),
        ({"key": "locked.key"}, r"the key .*locked\.key is encrypted, .*openssl pkey -in"),
        ({"certificate": "expired.pem", "key": "expired.key"}, r"the certificate .*expired\.pem has expired; renew it"),
        ({"certificate": "future.pem", "key": "future.key"}, r"the certificate .*future\.pem is not valid yet"),
    ],
)
def test_files_that_are_wrong(directory, named, says):
    with pytest.raises(ConfigError, match=says):
        Tls(files(directory, **named))


def test_a_certificate_that_is_not_for_servers(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=30))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "x.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "x.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(
        ConfigError, match=r"clients will refuse the certificate .*x\.pem: .*purpose.*; get another one"
    ):
        files(tmp_path, "x.pem", "x.key").check()


def test_what_is_allowed_but_not_good(directory, tmp_path):
    [expires] = files(directory, "soon.pem", "soon.key").check()
    assert "soon.pem expires in 3.5 days; renew it" in expires
    certificate, key = issue(tmp_path, "open")
    key.chmod(0o644)
    assert Tls(TlsFiles(certificate=certificate, key=key)).warnings == (
        f"everybody on this machine may read the key {key} (mode 644); chmod 600 {key}",
    )
    key.chmod(0o640)  # a group of those who need certificates
    assert TlsFiles(certificate=certificate, key=key).check() == ()


# Handshakes


def shown(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[bytes | None, str | None]:
    """The certificate that a server shows and the protocol that is chosen, by a handshake in memory."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(back, there, server_hostname="localhost")
    other = server.wrap_bio(there, back, server_side=True)
    for end in (one, other) * 4:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return one.getpeercert(binary_form=True), one.selected_alpn_protocol()


def test_a_client_gets_the_certificate_and_the_protocol(directory):
    tls, client = Tls(files(directory)), client_context(ca=directory / "authority.pem")
    client.set_alpn_protocols(["h2", "http/1.1"])
    certificate, protocol = shown(tls.context(alpn=("http/1.1",)), client)
    assert certificate == ssl.PEM_cert_to_DER_cert((directory / "good.pem").read_text())
    assert protocol == "http/1.1"
    assert shown(tls.context(), client)[1] is None


def test_old_versions_and_strangers_are_refused(directory):
    ca = directory / "authority.pem"
    mutual = Tls(files(directory, ca="authority.pem")).context()
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        shown(mutual, client_context(ca=ca))
    known = client_context(ca=ca, certificate=directory / "client.pem", key=directory / "client.key")
    assert shown(mutual, known)[0]
    old = client_context(ca=ca)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shown(mutual, old)
    with pytest.raises(ssl.SSLCertVerificationError):
        shown(Tls(files(directory)).context(), client_context())


# Renewal


def test_a_renewed_certificate_is_shown_by_what_was_given_out_before(directory, tmp_path):
    client = client_context(ca=directory / "authority.pem")
    certificate, key = issue(tmp_path, "server")
    tls = Tls(TlsFiles(certificate=certificate, key=key))
    contexts = [tls.context(alpn=("http/1.1",)), tls.context()]
    before = certificate.read_text()
    issue(tmp_path, "server", days=(-1, 5))
    tls.reload()
    after = certificate.read_text()
    assert after != before
    for context in contexts:
        assert shown(context, client)[0] == ssl.PEM_cert_to_DER_cert(after)
    assert "expires in 5.0 days" in tls.warnings[0]
    key.write_text((directory / "other.key").read_text())
    with pytest.raises(ConfigError, match="does not belong"):
        tls.reload()
    for context in contexts:
        assert shown(context, client)[0] == ssl.PEM_cert_to_DER_cert(after)


def test_grpc_shows_a_renewed_certificate_too(tmp_path):
    async def call(port: int, name: str) -> bytes:
        credentials = grpc.ssl_channel_credentials(root_certificates=authority().cert_pem.bytes())
        options = [("grpc.ssl_target_name_override", name)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            return await channel.unary_unary("/test/Echo")(b"x", timeout=10.0)

    async def echo(request: bytes, context: object) -> bytes:
        return request

    async def main() -> None:
        certificate, key = issue(tmp_path, "server", "one.test")
        tls = Tls(TlsFiles(certificate=certificate, key=key))
        server = grpc.aio.server()
        handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
        port = server.add_secure_port("127.0.0.1:0", tls.grpc_credentials())
        await server.start()
        try:
            for _ in range(2):
                assert await call(port, "one.test") == b"x"
            issue(tmp_path, "server", "two.test")
            assert await call(port, "one.test") == b"x"  # not before it is read
            tls.reload()
            for _ in range(2):
                assert await call(port, "two.test") == b"x"
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await call(port, "one.test")
        finally:
            await server.stop(None)

    asyncio.run(main())
