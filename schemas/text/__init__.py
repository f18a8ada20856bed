"""Texts and bytes from outside, bounded and cleaned."""
