"""Who a client is, what it may do, and how often and how much it may ask."""
