"""`retire-cluster up`: main node, REST facade and workers under one supervisor."""
