"""What runs on a device: the worker, and the processes of its tasks.

Its folders, each of which imports only those before it: `system` (processes, limits, shared memory,
folders), `device` (what this device is and what its owner allows), `walls` (what tasks are kept
from), `tasks` (the built-in types and own ones), `process` (what runs in a task process), `core`
(the pure half: what is said to the main node, and when; it imports none of the others), `running`
(attempts in slots), `link` (the connection), `selftest` (`--test`).
"""
