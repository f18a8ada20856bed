"""What this device proves to the main node: a join token once, its own key from then on.

`device.key` in the data folder is the device's one identity: its pair, the name under which the
main node knows it, the main node's public key, and where it was last welcomed. It changes only when
a main node said yes; what a join is still trying is in `joining.key`, written before the device
enrols, so that a crash in between cannot leave the main node with a key that nobody has.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from retire_cluster.conf import curve
from retire_cluster.conf.curve import ClientKeys, Pair
from retire_cluster.conf.usage import Unusable
from retire_cluster.node.link.sockets import Address, parse_join
from retire_cluster.schemas.text.join_string import looks_like_join

#: The pair of a join that is under way.
JOINING_KEY = "joining.key"
#: Where a main node without encryption welcomed this device.
PLAIN_MAIN = "main_node"


class Credentials:
    """The keys of one device for one main node.

    :param folder: the data folder
    :param keys: the device's own pair and the main node's public key
    :param address: the main node's worker bus
    :param device_id: under which the main node knows the key, empty when that is not known
    :param token: of the join string, if there was one
    :param enrolled: whether the main node said that it knows this key
    :param borrowed: the pair is the tooling's of this machine's main node, for a handshake only
    :param kept: what `device.key` says of the address, empty when this pair is not in it
    """

    def __init__(
        self,
        folder: Path,
        keys: ClientKeys,
        address: Address,
        *,
        device_id: str = "",
        token: bytes | None = None,
        enrolled: bool = False,
        borrowed: bool = False,
        kept: str = "",
    ) -> None:
        self.path = folder / curve.DEVICE_KEY
        self.pair = keys.pair
        self.server = keys.server
        self.address = address
        self.device_id = device_id
        self.enrolled = enrolled
        self.borrowed = borrowed
        self._draft = folder / JOINING_KEY
        self._token = token
        self._kept = kept
        #: Whether the main node once knew this key.
        self.was_enrolled = enrolled

    def current(self) -> ClientKeys:
        """The keys of the next connection: the token's while it is to enrol, else its own."""
        if self.enrolled or self._token is None:
            return ClientKeys(self.pair, self.server)
        return ClientKeys(curve.pair_of_token(self._token), self.server)

    @property
    def enrolling(self) -> bool:
        """Whether the next connection is there to enrol."""
        return not self.enrolled and self._token is not None

    def settle(self, name: str, *, asked: bool) -> str:
        """The name this device joins by: the one its key is known by, else `name`.

        :param asked: the name was given, not found in the folder
        Raises `Unusable` with the cure when the key is another name's and there is no join token
        to enrol a new one, `OSError`.
        """
        if self.device_id and self.device_id != name:
            known = self.enrolled or self._token is None
            if known and not asked:
                return self.device_id
            if known and self._token is None:
                raise Unusable(
                    f"--device-id: this device is known as {self.device_id} to its main node;"
                    f" leave the flag out, or join as {name} with a new line of"
                    " `retire-cluster token create`"
                )
            # A key stands for one name: another name is another key.
            self.pair, self.enrolled, self.was_enrolled = curve.new_pair(), False, False
            self._kept = ""
        self.device_id = name
        if self.enrolling:
            self._write(self._draft)
        return name

    def keep(self) -> None:
        """Make this the device's identity. Raises `OSError`."""
        self._write(self.path)
        self._kept = str(self.address)
        self._draft.unlink(missing_ok=True)

    def note_enrolled(self) -> None:
        """Note that the main node knows this key now. Raises `OSError` when that cannot be kept."""
        self.enrolled = self.was_enrolled = True
        self.keep()

    def note_welcomed(self) -> None:
        """Note that the device was welcomed at `address`. Raises `OSError`."""
        self.enrolled = self.was_enrolled = True
        if self._kept != str(self.address):
            self.keep()

    def note_refused(self) -> bool:
        """Note that the main node refused the keys; whether others are there to try."""
        if self.enrolled and self._token is not None:
            self.enrolled = False
            return True
        if self.was_enrolled and not self.enrolled:
            self.enrolled, self._token = True, None
        return False

    def _write(self, path: Path) -> None:
        assert not self.borrowed, "another's key is not kept"
        curve.write_key_file(
            path,
            self.pair,
            server=self.server,
            main=str(self.address),
            device_id=self.device_id,
            enrolled=self.enrolled,
        )


def find(folder: Path, join: str, *, plain: bool = False) -> tuple[Address, Credentials | None]:
    """Where to dial, and with which keys (None: without encryption).

    Nothing is written before the device's name is settled.

    :param join: a join string, `HOST[:PORT]`, or nothing: where it was welcomed before
    :param plain: do not encrypt
    Raises `Unusable` with the cure, `KeyFileError`, `OSError`.
    """
    kept = None if plain else curve.read_key_file(folder / curve.DEVICE_KEY)
    draft = None if plain else curve.read_key_file(folder / JOINING_KEY)
    if looks_like_join(join):
        invitation = curve.read_join(join)
        if plain:
            raise Unusable("--plain: a join string is for an encrypted main node; leave it out")
        if not curve.available():
            raise Unusable(
                "this device's libzmq cannot encrypt: pip install --force-reinstall pyzmq"
            )
        address = Address(invitation.host, invitation.port)
        # Of another cluster nothing is used; nor is it lost, should this join come to nothing.
        known = next(
            (row for row in (kept, draft) if row and row.get("server") == invitation.server), None
        )
        pair = curve.new_pair() if known is None else Pair(known["public"], known["secret"])
        return address, Credentials(
            folder,
            ClientKeys(pair, invitation.server),
            address,
            device_id=str(known.get("device_id") or "") if known else "",
            token=invitation.token,
            enrolled=bool(known is kept and known and known.get("enrolled")),
            kept=str(known.get("main")) if known is kept and known else "",
        )
    known = kept or draft
    if known is not None and "server" not in known:
        known = None
    if not join:
        main = known.get("main") if known else _plain_main(folder)
        if not isinstance(main, str):
            raise Unusable(
                "name the main node: --join with the line that `retire-cluster token create` prints"
                " there, or --join HOST[:PORT] for one without encryption"
            )
        join = main
    address = parse_join(join)
    if known is None:
        return address, None
    # One that never was enrolled may be: a crash can have come before the answer.
    return address, Credentials(
        folder,
        ClientKeys(Pair(known["public"], known["secret"]), known["server"]),
        address,
        device_id=str(known.get("device_id") or ""),
        enrolled=bool(known.get("enrolled")),
        kept=str(known.get("main")) if known is kept else "",
    )


def remember_plain(folder: Path, address: Address) -> None:
    """Remember where a main node without encryption welcomed this device. Raises `OSError`."""
    if _plain_main(folder) == str(address):
        return
    path = folder / PLAIN_MAIN
    draft = path.with_suffix(".new")
    draft.write_text(f"{address}\n", encoding="utf-8")
    os.replace(draft, path)


def _plain_main(folder: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / PLAIN_MAIN).read_text(encoding="utf-8").strip()[:400] or None
    return None
