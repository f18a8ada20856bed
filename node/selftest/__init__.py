"""`--test`: runs a task of each kind, and asks the main node whether it takes this device."""
