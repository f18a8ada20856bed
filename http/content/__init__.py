"""Bodies and envelopes: what a request says, and how an answer is written."""
