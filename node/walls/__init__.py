"""What a task is kept from on its device."""
