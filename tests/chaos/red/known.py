"""S1 to S17: the attacks that docs/security.md has listed for long."""

from __future__ import annotations

from tests.chaos.red import Attack, Target, Went
from tests.chaos.red.target import until


def _a_random_key(target: Target) -> str:
    refused = target.dropped("handshake_refused_bus")
    device = target.device("stranger", target.stranger())
    device.knock()
    try:
        until(lambda: target.dropped("handshake_refused_bus") > refused, "the refusal", 5)
    except TimeoutError:
        raise Went("a key that nobody knows was not refused") from None
    device.knock()
    if device.read(0.2) is not None:
        raise Went("the main node answers a stranger")
    if "refused a handshake on the bus" not in target.log():
        raise Went("refused, but the log does not say so")
    return "refused in the handshake, counted, logged"


def _no_encryption(target: Target) -> str:
    device = target.device("plain")
    device.knock()
    device.hello()
    if device.read(1.0) is not None:
        raise Went("the bus answers a client without keys")
    if target.dropped("handshake_failed_bus") < 1:
        raise Went("not counted")
    return "no answer, counted"


ATTACKS = [
    Attack("S1", "a random key on the bus", _a_random_key),
    Attack("S1", "no encryption on the bus", _no_encryption),
]
