"""The REST contract: operations, requests, responses and their validation."""
