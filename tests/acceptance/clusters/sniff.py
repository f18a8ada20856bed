"""Writes every frame of eth0 to standard output until it is ended."""

from __future__ import annotations

import socket
import sys

sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
sniffer.bind(("eth0", 0))
while True:
    sys.stdout.buffer.write(sniffer.recv(65_536))
    sys.stdout.buffer.flush()
