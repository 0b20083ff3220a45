"""Tokens that are made by PyJWT, and clients of the websockets library that bring them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.exceptions import ConnectionClosed, InvalidStatus

from conftest import StartGateway
from gateway import Gateway

SECRET = "correct horse battery staple 0123456789"


@dataclass(frozen=True)
class Signer:
    """A key under its name in the JWK Set, and the algorithm to sign with."""

    kid: str
    algorithm: str
    key: object

    def token(self, **claims: object) -> str:
        claims = {"sub": "alice", "exp": int(time.time()) + 3600, "channels": ["*"]} | claims
        return jwt.encode(claims, self.key, self.algorithm, headers={"kid": self.kid})


HMAC = Signer("hmac", "HS256", SECRET)
PUBLIC = [
    Signer("rsa", "RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    Signer("p256", "ES256", ec.generate_private_key(ec.SECP256R1())),
    Signer("p384", "ES384", ec.generate_private_key(ec.SECP384R1())),
    Signer("ed25519", "EdDSA", ed25519.Ed25519PrivateKey.generate()),
]


def jwks() -> str:
    keys = []
    for signer in PUBLIC:
        algorithm = jwt.get_algorithm_by_name(signer.algorithm)
        key = json.loads(algorithm.to_jwk(signer.key.public_key()))
        keys.append(key | {"kid": signer.kid, "use": "sig"})
    return json.dumps({"keys": keys})


@pytest.fixture
def with_jwks(start_gateway: StartGateway, tmp_path: Path) -> Iterator[Gateway]:
    path = tmp_path / "jwks.json"
    path.write_text(jwks())
    yield start_gateway(token_jwks=path, token_hmac_secret=SECRET, token_leeway="0s")


def status(gateway: Gateway, path: str, **options: object) -> int:
    """What a handshake that is refused is answered with."""
    with pytest.raises(InvalidStatus) as refused:
        gateway.connect(path, **options)
    return refused.value.response.status_code


@pytest.mark.parametrize("signer", [HMAC, *PUBLIC], ids=lambda signer: signer.algorithm)
def test_token_of_each_algorithm_is_believed_and_no_other(
    with_jwks: Gateway, signer: Signer
) -> None:
    headers = {"Authorization": f"Bearer {signer.token()}"}
    with with_jwks.connect("/channels/news", additional_headers=headers) as client:
        client.send("believed")
        assert client.recv(timeout=10) == "believed"
    head, claims, signature = signer.token().split(".")
    _, others, _ = signer.token(sub="mallory").split(".")
    forged = {"Authorization": f"Bearer {head}.{others}.{signature}"}
    assert status(with_jwks, "/channels/news", additional_headers=forged) == 401
    unsigned = jwt.encode({"sub": "alice"}, None, "none")
    assert status(with_jwks, f"/echo?token={unsigned}") == 401


@pytest.mark.parametrize("signer", PUBLIC, ids=lambda signer: signer.algorithm)
def test_token_is_believed_by_a_public_key_in_pem(
    start_gateway: StartGateway, tmp_path: Path, signer: Signer
) -> None:
    public = signer.key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path = tmp_path / "public.pem"
    path.write_bytes(pem)
    gateway = start_gateway(token_public_key=path)
    with gateway.connect(f"/echo?token={signer.token()}") as client:
        client.send("believed")
        assert client.recv(timeout=10) == "believed"
    assert status(gateway, f"/echo?token={HMAC.token()}") == 401


def test_subprotocol_bearer_is_selected(with_jwks: Gateway) -> None:
    with with_jwks.connect("/echo", subprotocols=["bearer", HMAC.token()]) as client:
        assert client.subprotocol == "bearer"


def test_audience_and_issuer_are_compared(start_gateway: StartGateway) -> None:
    gateway = start_gateway(
        token_hmac_secret=SECRET, token_audience="chat", token_issuer="https://id.example"
    )
    good = {"aud": ["chat", "push"], "iss": "https://id.example"}
    with gateway.connect(f"/echo?token={HMAC.token(**good)}"):
        pass
    for bad in [good | {"aud": "push"}, good | {"iss": "https://evil.example"}, {}]:
        assert status(gateway, f"/echo?token={HMAC.token(**bad)}") == 401


def test_connection_ends_with_its_token_unless_that_is_renewed(with_jwks: Gateway) -> None:
    short = HMAC.token(exp=int(time.time()) + 5)
    with (
        with_jwks.connect(f"/echo?token={short}") as ended,
        with_jwks.connect(f"/echo?control=true&token={short}") as renewed,
    ):
        renewed.send(json.dumps({"refresh": PUBLIC[1].token()}))
        assert json.loads(renewed.recv(timeout=10))["refresh"]["expires_at"] > time.time() + 3000
        with pytest.raises(ConnectionClosed) as closed:
            ended.recv(timeout=20)
        assert closed.value.rcvd.code == 3005
        renewed.send("still here")
        assert renewed.recv(timeout=10) == "still here"


def test_user_is_disconnected(with_jwks: Gateway) -> None:
    with (
        with_jwks.connect(f"/echo?token={HMAC.token()}") as alice,
        with_jwks.connect(f"/echo?token={HMAC.token(sub='bob')}") as bob,
    ):
        answer = with_jwks.api("disconnect", {"user": "alice"})
        assert answer.json() == {"result": {}}
        with pytest.raises(ConnectionClosed):
            alice.recv(timeout=10)
        bob.send("still here")
        assert bob.recv(timeout=10) == "still here"
