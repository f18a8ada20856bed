"""How a device is let in: it enrols its key with a join token, and tries others when refused.

A connection that is there to enrol says ENROL in place of HELLO; the next one uses the key that was
enrolled. A main node without encryption knows no keys: there only the welcome is remembered.
"""

from __future__ import annotations

import logging
import secrets
from enum import Enum
from pathlib import Path

from retire_cluster.node.link import credentials
from retire_cluster.node.link.credentials import Credentials
from retire_cluster.node.link.sockets import Address
from retire_cluster.schemas.protocol.messages import Enrol, Enrolled, FromBroker, Reject

log = logging.getLogger("retire_cluster.node")


class Next(Enum):
    """What the connection is to do now."""

    #: Go on as it is.
    STAY = "stay"
    #: Dial again, with the keys that count now.
    DIAL = "dial"
    #: Wait: these keys are refused, and there are no others.
    WAIT = "wait"
    #: End the worker: nobody takes it.
    GIVE_UP = "give up"


class Enrolment:
    """The way in to one main node.

    :param keys: what the device proves, None: it does not encrypt
    :param folder: the data folder, which remembers where it was welcomed
    """

    def __init__(self, keys: Credentials | None, address: Address, folder: Path) -> None:
        self._keys = keys
        self._address = address
        self._folder = folder
        #: Names the ENROL that is under way.
        self._session = ""

    @property
    def is_due(self) -> bool:
        """Whether the connection is there to enrol."""
        return self._keys is not None and self._keys.enrolling

    def request(self, device_id: str) -> Enrol:
        """The message that asks for it; only while it is due."""
        assert self._keys is not None
        self._session = secrets.token_hex(8)
        return Enrol(self._session, device_id, self._keys.pair.public)

    def read(self, record: FromBroker) -> Next:
        """Take a message that comes while it is due; what to do then."""
        keys = self._keys
        assert keys is not None
        if isinstance(record, Enrolled) and record.session == self._session:
            try:
                keys.note_enrolled()
            except OSError as error:
                log.error("%s cannot be written: %s", keys.path, error)
            log.info("enrolled at %s; the join token is not needed again", self._address)
            return Next.DIAL
        if isinstance(record, Reject):
            log.error("%s does not take this device: %s", self._address, record.message)
            return Next.GIVE_UP
        return Next.STAY

    def lifts(self, record: FromBroker) -> bool:
        """Whether this device was removed and holds a join token that may undo that."""
        removed = isinstance(record, Reject) and record.code == "removed"
        return removed and self._keys is not None and self._keys.note_refused()

    def refuse(self) -> Next:
        """Note that the main node does not know the keys of this connection; what to do then."""
        if self._keys is not None and self._keys.note_refused():
            return Next.DIAL
        if self._keys is not None and not self._keys.was_enrolled:
            log.error(
                "%s refuses the join token: it is used up, expired or revoked. Make a new one on"
                " the main node: retire-cluster token create",
                self._address,
            )
            return Next.GIVE_UP
        return Next.WAIT

    def note_welcome(self) -> None:
        """Remember where the device was welcomed, for its next start."""
        try:
            if self._keys is None:
                credentials.remember_plain(self._folder, self._address)
            else:
                self._keys.note_welcomed()
        except OSError as error:
            log.error("where this device joined cannot be kept for its next start: %s", error)
