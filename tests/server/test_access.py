"""Who may come in: tokens, what they allow, and where a server may listen."""

import dataclasses
import hashlib
import hmac
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.cli.token import make_token
from jaxserve.errors import ConfigError, PermissionDenied, Unauthenticated
from jaxserve.protocols.bearer import LONGEST_TOKEN, check_token, token_in
from jaxserve.server import access as access_module
from jaxserve.server.access import ANYBODY, OPERATOR, Access, Identity, Memory, read_tokens
from jaxserve.server.binding import check_binding

ONE, TWO = "one-0123456789abc", "two-0123456789abc"
ENTRY = f'[[tokens]]\nname = "one"\ntoken = "{ONE}"\ninfer = ["minilm", "gpt-*"]\n'


def bearer(token: str) -> str:
    """The header `Authorization` that shows a token."""
    return f"Bearer {token}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.touch(mode=0o600)
    path.write_text(ENTRY)
    return path


# What an identity may do


def test_patterns_say_which_models():
    identity = Identity(name="one", infer=("minilm", "gpt-*", "v[12]", "a?"), admin=("gpt-2",))
    for model, may in {
        "minilm": True,
        "minilm2": False,
        "MiniLM": False,
        "gpt-": True,
        "gpt-2/../x": True,
        "gpt": False,
        "v2": True,
        "v3": False,
        "ab": True,
        "a": False,
        "": False,
    }.items():
        for _ in range(2):  # the second time from memory
            assert identity.may_infer(model) is may, model
    assert identity.may_administer("gpt-2")
    assert not identity.may_administer("minilm")
    assert (identity.tenant("other"), ANYBODY.tenant("other")) == ("one", "other")


def test_everybody_uses_everything_and_only_the_operator_administers():
    for model in ("minilm", "", "a\nb", "x" * 10_000):
        assert ANYBODY.may_infer(model)
        assert not ANYBODY.may_administer(model)
        assert OPERATOR.may_infer(model)
        assert OPERATOR.may_administer(model)
    assert ANYBODY.observe


def test_what_is_remembered_is_bounded():
    identity = Identity(infer=("a*",))
    for number in range(5000):
        assert identity.may_infer(f"a{number}")
        assert not identity.may_infer(f"b{number}" * 100)
    assert len(identity._may_infer) <= 1024
    assert all(len(model) <= 256 for model in identity._may_infer)


def test_refusals_say_who_what_and_how_to_mend_it():
    one = Identity(name="one")
    assert str(one.cannot_infer("gpt")) == (
        "the token 'one' may not use model 'gpt'; who runs the server can allow it by the token's 'infer' in the "
        "tokens file"
    )
    assert "whoever shows no token may not administer model 'gpt'" in str(ANYBODY.cannot_administer("gpt"))
    with pytest.raises(PermissionDenied, match="the token 'one' may not see what the server does"):
        dataclasses.replace(one, observe=False).check_observes()
    one.check_observes()
    assert len(str(one.cannot_infer("x" * 10_000))) < 500
    assert "secret" not in repr(Identity(name="x", digest=b"secret"))


# Tokens


def test_an_open_server_knows_nobody():
    access = Access()
    assert access.is_open
    for header in (None, "Bearer x", "nonsense"):
        assert access.identify(header) is ANYBODY
        assert Memory(access).identify(header) is ANYBODY
    access.reload()
    assert access.current(ANYBODY) is ANYBODY
    assert Access(everybody=OPERATOR).identify_token("") is OPERATOR


def test_a_token_is_known_by_its_digest(path):
    path.write_text(
        ENTRY + f'[[tokens]]\nname = "two"\nsha256 = "{hashlib.sha256(TWO.encode()).hexdigest().upper()}"\n'
        'infer = []\nadmin = ["*"]\nobserve = false\n'
    )
    access = Access.from_file(path)
    assert not access.is_open
    one, two = access.identify(f"Bearer {ONE}"), access.identify(f"bEARER   {TWO} ")
    assert (one.name, one.infer, one.admin, one.observe) == ("one", ("minilm", "gpt-*"), (), True)
    assert (two.name, two.infer, two.admin, two.observe) == ("two", (), ("*",), False)
    assert access.current(one) is one
    assert ONE not in repr(access.__dict__) + repr(one)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (None, "this server wants a token; send it in the header `Authorization: Bearer TOKEN`"),
        ("", "must show a bearer token"),
        ("Basic dXNlcjpwYXNz", "must show a bearer token"),
        (ONE, "must show a bearer token"),
        ("Bearer", "wants a token"),
        ("Bearer ", "wants a token"),
        (f"Bearer {ONE}x", "does not know the token"),
        (f"Bearer {ONE[:-1]}", "does not know the token"),
        (f"Bearer\t{ONE}", "must show a bearer token"),
        (f"Bearer {ONE}\udcff", "does not know the token"),
        ("Bearer \ud800", "does not know the token"),
        (f"Bearer {ONE} {ONE}", "does not know the token"),
    ],
)
def test_who_is_not_known(path, header, says):
    access = Access.from_file(path)
    memory = Memory(access)
    memory.identify(bearer(ONE))
    for identify in (access.identify, memory.identify):
        with pytest.raises(Unauthenticated, match=says) as raised:
            identify(header)
        assert "0123456789" not in str(raised.value)


def test_every_digest_is_compared_whichever_it_is(path, monkeypatch):
    path.write_text(ENTRY + ENTRY.replace("one", "two") + ENTRY.replace("one", "three"))
    access = Access.from_file(path)
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(access_module, "hmac", SimpleNamespace(compare_digest=compare))
    for header in (bearer(ONE), bearer("nobody-0123456789")):
        compared.clear()
        try:
            access.identify(header)
        except Unauthenticated:
            assert header != bearer(ONE)
        assert len(compared) == 3


def test_a_connection_remembers_its_last_token_until_they_are_read_again(path, monkeypatch):
    access = Access.from_file(path)
    memory = Memory(access)
    first = memory.identify(bearer(ONE))
    monkeypatch.setattr(access, "identify", lambda header: pytest.fail("it was asked again"))
    assert memory.identify(bearer(ONE)) is first
    monkeypatch.undo()
    path.write_text(ENTRY.replace("gpt-*", "vit"))
    access.reload()
    assert memory.identify(bearer(ONE)).infer == ("minilm", "vit")
    path.write_text(ENTRY.replace(ONE, TWO))
    access.reload()
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            memory.identify(bearer(ONE))
    assert memory.identify(bearer(TWO)).name == "one"


def test_what_is_wrong_when_it_is_read_again_changes_nothing(path):
    access = Access.from_file(path)
    seen: list[int] = []
    stop = access.watch(lambda: seen.append(access.version))
    for content in ("", "[[tokens]]\n", "nonsense"):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"tokens\.toml"):
            access.reload()
    assert access.identify(bearer(ONE)).name == "one"
    path.write_text(ENTRY)
    access.reload()
    stop()
    access.reload()
    assert seen == [1]


# The file


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", r"holds no token, so nobody could come in; add a table \[\[tokens\]\]"),
        ("tokens = []", "holds no token"),
        ("tokens = 3", r"must hold nothing but tables \[\[tokens\]\]"),
        ("tokens = [1]", "must hold nothing but tables"),
        ("name = 'x'\n" + ENTRY, "must hold nothing but tables"),
        ("[[tokens]\n", r"tokens\.toml, line 1: "),
        (ENTRY.replace("token =", "tokne ="), r"token 1: unknown key 'tokne'; did you mean 'token'\?"),
        (ENTRY + 'Infer = ["x"]', "unknown key 'Infer'; did you mean 'infer'"),
        (ENTRY.replace('"one"', "1"), "token 1: name is 1, but must be a text"),
        (ENTRY.replace(f'"{ONE}"', "12345678901234567890"), "token 1: token is a int, but must be a text"),
        (
            ENTRY.replace('["minilm", "gpt-*"]', '"minilm"'),
            "infer is 'minilm', but must be an array, each element a text",
        ),
        (ENTRY.replace('["minilm", "gpt-*"]', "[1]"), "infer is .1., but must be a text"),
        (ENTRY.replace('"minilm"', '""'), r"token 1 \(one\): an element of 'infer' is empty"),
        (ENTRY + "observe = 1", "observe is 1, but must be true or false"),
        (ENTRY.replace('name = "one"', ""), "token 1: has no 'name'; add one, such as name = \"search\""),
        (ENTRY.split("infer")[0], "token 1: has no 'infer'; add one, such as infer = "),
        (ENTRY.replace('"one"', '""'), "its name must be printable text of 1 to 128 characters"),
        (ENTRY.replace('"one"', '"a\\nb"'), "its name must be printable text"),
        (ENTRY.replace('"one"', f'"{"x" * 129}"'), "its name must be printable text"),
        (ENTRY.replace(f'token = "{ONE}"', ""), "has neither of 'token' and 'sha256'"),
        (ENTRY + f'sha256 = "{"0" * 64}"', "has both of 'token' and 'sha256'"),
        (ENTRY.replace(f'token = "{ONE}"', 'sha256 = "abc"'), "'sha256' must be 64 hexadecimal digits"),
        (ENTRY.replace(f'token = "{ONE}"', f'sha256 = "{"0" * 63}g"'), "'sha256' must be 64 hexadecimal digits"),
        (ENTRY.replace(ONE, "fifteen-letters"), "the token has 15 characters, but must have from 16 to 1024"),
        (ENTRY.replace(ONE, "with a space in it"), "the token has characters that no header may carry"),
        (ENTRY + ENTRY, "there are two tokens 'one'; give each a name of its own"),
        (ENTRY + ENTRY.replace('"one"', '"two"'), "'one' and 'two' have the same token; make a new one for either"),
    ],
)
def test_what_a_tokens_file_may_not_hold(path, content, says):
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as raised:
        read_tokens(path)
    assert "0123456789abc" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_tokens_file_is_its_owners_alone(path, mode):
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"holds secrets, .*\(mode {mode:o}\); chmod 600 .*tokens\.toml"):
        Access.from_file(path)
    path.chmod(0o400)
    assert not Access.from_file(path).is_open


def test_a_tokens_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        Access.from_file(tmp_path / "none.toml")


printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@settings(deadline=None)
@given(printable, st.lists(printable, max_size=3), st.lists(printable, max_size=3))
def test_a_token_that_was_made_is_let_in(tmp_path_factory, name, infer, admin):
    token, entry = make_token(name, infer=infer, admin=admin)
    assert token not in entry
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.touch(mode=0o600)
    path.write_text(entry + ENTRY.replace('"one"', '"another one with spaces"'), "utf-8")
    identity = Access.from_file(path).identify(bearer(token))
    assert (identity.name, identity.infer, identity.admin) == (name, tuple(infer), tuple(admin))


@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9\-._~+/]{1,40}=*", fullmatch=True))
def test_a_token_that_may_be_sent_comes_back_from_its_header(token):
    try:
        check_token(token)
    except ConfigError:
        return
    assert token.isascii()
    assert len(token) <= LONGEST_TOKEN
    assert token_in(bearer(token)) == token


# Where to listen

TOKENS = Access([Identity(name="one", digest=b"x" * 32)])


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost", "unix:/tmp/x", "/tmp/x"]
)
def test_on_this_machine_anybody_may_come_in(host):
    assert check_binding([host], Access()) == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "::ffff:192.0.2.1", "fe80::1"])
def test_from_elsewhere_nobody_comes_in_unknown(host):
    with pytest.raises(ConfigError, match=r"other machines can reach .*; give --tokens FILE, .*or say --insecure"):
        check_binding(["127.0.0.1", host], Access())
    [warning] = check_binding([host], Access(), insecure=True)
    assert warning.startswith("anybody who can reach ")
    [warning] = check_binding([host, host], TOKENS)
    assert "in the clear" in warning
    assert check_binding([host], TOKENS, tls=True) == ()
    assert check_binding([host], Access(), tls=True, mutual_tls=True) == ()
    with pytest.raises(ConfigError, match="other machines can reach"):  # encryption alone lets everybody in
        check_binding([host], Access(), tls=True)


def test_a_name_that_stands_for_no_address():
    with pytest.raises(ConfigError, match=r"there is no host 'nohost\.invalid' to listen on"):
        check_binding(["nohost.invalid"], TOKENS)
