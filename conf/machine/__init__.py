"""What the operating system tells and does for a process."""
