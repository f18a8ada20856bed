"""What this device proves to the main node: a join token once, its own key from then on.

`device.key` in the data folder holds the pair, the main node's public key and address, and whether
the main node knows this key. It is written before the device enrols, so that a crash in between
cannot leave the main node with a key that nobody has.
"""

from __future__ import annotations

from pathlib import Path

from retire_cluster.conf import curve
from retire_cluster.conf.curve import ClientKeys, Pair
from retire_cluster.node.sockets import Address, parse_join


class Credentials:
    """The keys of one device for one main node.

    :param path: of `device.key`
    :param pair: the device's own
    :param server: the main node's public key
    :param address: the main node's worker bus, kept for a start without `--join`
    :param token: of the join string, if there was one
    :param enrolled: whether the main node said that it knows this key
    """

    def __init__(
        self,
        path: Path,
        pair: Pair,
        server: str,
        address: Address,
        *,
        token: bytes | None = None,
        enrolled: bool = False,
    ) -> None:
        self.path = path
        self.pair = pair
        self.server = server
        self.address = address
        self.enrolled = enrolled
        self._token = token
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

    def keep(self) -> None:
        """Write `device.key`. Raises `OSError`."""
        curve.write_key_file(
            self.path,
            self.pair,
            server=self.server,
            main=str(self.address),
            enrolled=self.enrolled,
        )

    def note_enrolled(self) -> None:
        """The main node knows this key now. Raises `OSError` when that cannot be kept."""
        self.enrolled = self.was_enrolled = True
        self.keep()

    def note_refused(self) -> bool:
        """The main node refused the keys it was shown; whether there is another way to try."""
        if self.enrolled and self._token is not None:
            self.enrolled = False
            return True
        if self.was_enrolled and not self.enrolled:
            self.enrolled, self._token = True, None
        return False


def find(folder: Path, join: str, *, plain: bool = False) -> tuple[Address, Credentials | None]:
    """Where to dial, and with which keys (None: without encryption).

    :param join: a join string, `HOST[:PORT]`, or nothing: where it joined before
    :param plain: do not encrypt
    Raises `ValueError` with the cure, `KeyFileError`, `OSError`.
    """
    path = folder / curve.DEVICE_KEY
    kept = None if plain else curve.read_key_file(path)
    pair = curve.new_pair() if kept is None else Pair(kept["public"], kept["secret"])
    server = kept.get("server") if kept else None
    if curve.looks_like_join(join):
        invitation = curve.read_join(join)
        if plain:
            raise ValueError("--plain: a join string is for an encrypted main node; leave it out")
        if not curve.available():
            raise ValueError(
                "this device's libzmq cannot encrypt: pip install --force-reinstall pyzmq"
            )
        address = Address(invitation.host, invitation.port)
        if server != invitation.server and server is not None:
            pair, kept = curve.new_pair(), None  # another cluster: nothing of the old one's
        known = bool(kept and kept.get("enrolled"))
        found = Credentials(
            path, pair, invitation.server, address, token=invitation.token, enrolled=known
        )
        found.keep()
        return address, found
    if not join:
        main = kept.get("main") if kept else None
        if not isinstance(main, str):
            raise ValueError(
                "name the main node: --join with the line that `retire-cluster token create` prints"
                " there, or --join HOST[:PORT] for one without encryption"
            )
        join = main
    address = parse_join(join)
    if server is None:
        return address, None
    return address, Credentials(path, pair, server, address, enrolled=True)
