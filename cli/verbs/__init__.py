"""The verbs that ask a running cluster or look at this installation."""
