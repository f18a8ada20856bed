"""CURVE keys: pairs, the files that hold them, and the join string that carries them.

A *pair* is two Z85 texts of 40 characters. Key files are JSON, 0600; one of ours that
others may read is closed again with a warning, one of another user is refused. The main node's
folder holds

    keys/main.key    its own pair; devices and tooling know its public half
    keys/admin.key   the pair of this machine's tooling, with the main node's public key

and a device's folder holds `device.key`: its own pair, the main node's public key and address.

A *join string* is one word, `rc1.` and base64url of: the main node's public key (32 bytes), a token
(16 random bytes), `HOST:PORT`, and 4 bytes of SHA-256 over all of it. The token is the seed of a
pair that may do nothing but enrol a device's own key, so that strangers are refused in the
handshake, before a single frame of theirs is read.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zmq
from zmq.utils import z85

from retire_cluster.conf.machine import ownership
from retire_cluster.conf.usage import Unusable
from retire_cluster.schemas.bounds import MAX_PORT
from retire_cluster.schemas.keys import is_key
from retire_cluster.schemas.text import join_string
from retire_cluster.schemas.text.hosts import HostError, read_host

TOKEN_BYTES = 16
_CHECK_BYTES = 4
_SEED_DOMAIN = b"retire-cluster enrolment 1\0"
MAIN_KEY = Path("keys", "main.key")
ADMIN_KEY = Path("keys", "admin.key")
DEVICE_KEY = Path("device.key")


class KeyFileError(Exception):
    """A key file cannot be used; the text names the file and the cure."""


class Pair(NamedTuple):
    """A CURVE key pair, as Z85 texts."""

    public: str
    secret: str


class ClientKeys(NamedTuple):
    """The CURVE keys with which a client speaks to one main node."""

    pair: Pair
    #: The main node's public key.
    server: str


def available() -> bool:
    """Tell whether this libzmq can encrypt (every wheel of pyzmq can)."""
    return bool(zmq.has("curve"))


def new_pair() -> Pair:
    """Return a new random pair."""
    public, secret = zmq.curve_keypair()
    return Pair(public.decode("ascii"), secret.decode("ascii"))


def pair_of_token(token: bytes) -> Pair:
    """Return the enrolment pair whose seed is a join token."""
    secret: bytes = z85.encode(hashlib.sha256(_SEED_DOMAIN + token).digest())
    return Pair(zmq.curve_public(secret).decode("ascii"), secret.decode("ascii"))


def lock(socket: zmq.Socket[bytes], keys: ClientKeys) -> None:
    """Make a socket that is not connected yet encrypt with these keys."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server.encode("ascii"))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.pair.public.encode("ascii"))
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.pair.secret.encode("ascii"))


# --- files ---------------------------------------------------------------------------------------


def read_key_file(path: Path) -> dict[str, Any] | None:
    """Return the content of a key file, None when there is none.

    One that others may read is closed to them, with a warning. Raises `KeyFileError` when that
    cannot be done, somebody else made it or it is no key file.
    """
    try:
        with _open_own(path) as file:
            found = os.fstat(file.fileno())
            ownership.check_owner(path, found)
            is_open = os.name == "posix" and bool(stat.S_IMODE(found.st_mode) & 0o077)
            if is_open and not ownership.mend_key(path, found):
                raise KeyFileError(f"{path}: others may read this key; run: chmod 600 {path}")
            document = json.loads(file.read(65_536))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except ownership.Foreign as error:
        raise KeyFileError(str(error)) from None
    except ValueError:
        raise KeyFileError(f"{path} is no key file; {_cure(path)}") from None
    if (
        not isinstance(document, dict)
        or not is_key(document.get("public"))
        or not is_key(document.get("secret"))
        or ("server" in document and not is_key(document["server"]))
    ):
        raise KeyFileError(f"{path} is no key file; {_cure(path)}")
    return document


def _open_own(path: Path) -> BinaryIO:
    """Return the file, also where its owner, this user, has been shut out."""
    try:
        return path.open("rb")
    except PermissionError:
        if not ownership.mend_key(path, path.stat()):
            raise
    return path.open("rb")


def _cure(path: Path) -> str:
    return f"restore it from a backup, or move it away and start again: {path.name} is then made"


def write_key_file(path: Path, pair: Pair, **more: object) -> None:
    """Keep a pair and what belongs to it, 0600, all or nothing. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({**pair._asdict(), **more}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def server_pair(data_dir: Path) -> Pair:
    """Return the main node's pair; make it, and the tooling's beside it, where they are missing.

    Raises `KeyFileError` for a file that cannot be used, `OSError` when one cannot be written.
    """
    path = data_dir / MAIN_KEY
    found = read_key_file(path)
    if found is None:
        pair = new_pair()
        write_key_file(path, pair)
    else:
        pair = Pair(found["public"], found["secret"])
    tooling = data_dir / ADMIN_KEY
    kept = read_key_file(tooling)
    if kept is None or kept.get("server") != pair.public:
        mine = new_pair() if kept is None else Pair(kept["public"], kept["secret"])
        write_key_file(tooling, mine, server=pair.public)
    return pair


def client_keys(path: Path) -> ClientKeys | None:
    """Return the CURVE keys of an admin key file, None when there is no such file.

    Raises `KeyFileError`.
    """
    found = read_key_file(path)
    if found is None:
        return None
    if "server" not in found:
        raise KeyFileError(f"{path} does not name the main node's key: it is no admin key")
    return ClientKeys(Pair(found["public"], found["secret"]), found["server"])


# --- join strings --------------------------------------------------------------------------------


class Invitation(NamedTuple):
    """What a join string says."""

    #: Where the worker bus is.
    host: str
    port: int
    #: The main node's public key.
    server: str
    #: `TOKEN_BYTES` long.
    token: bytes


def write_join(invitation: Invitation) -> str:
    """Return the join string. Raises `HostError` for a host that nobody can dial."""
    address = f"{read_host(invitation.host)}:{invitation.port}".encode()
    body: bytes = z85.decode(invitation.server.encode("ascii")) + invitation.token + address
    check = hashlib.sha256(body).digest()[:_CHECK_BYTES]
    return join_string.PREFIX + base64.urlsafe_b64encode(body + check).decode("ascii").rstrip("=")


def read_join(text: str) -> Invitation:
    """Return what a join string says. Raises `Unusable` with the cure."""
    word = "".join(text.split())
    if not word.startswith(join_string.PREFIX):
        raise Unusable(
            "this join string was made by another version of retire-cluster: update the older one"
        )
    body = word[len(join_string.PREFIX) :]
    try:
        data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        data = b""
    content, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    host, _, port = content[32 + TOKEN_BYTES :].decode("utf-8", "replace").rpartition(":")
    good = hashlib.sha256(content).digest()[:_CHECK_BYTES] == check
    if not (good and host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) <= MAX_PORT):
        raise Unusable(
            "the join string is cut or mistyped: copy the whole line again, or make a new one on"
            " the main node with: retire-cluster token create"
        )
    server: bytes = z85.encode(content[:32])
    token = content[32 : 32 + TOKEN_BYTES]
    try:
        return Invitation(read_host(host), int(port), server.decode("ascii"), token)
    except HostError as error:
        raise Unusable(
            f"the join string leads nowhere: {error}; make a new one on the main node with:"
            " retire-cluster token create --host ADDRESS"
        ) from None
