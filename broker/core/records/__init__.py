"""What is remembered beside live tasks and devices: the ledger, the event log, figures."""
