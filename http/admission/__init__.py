"""Who a client is, what it may do, how often and how much it may ask, and how long it may wait."""
