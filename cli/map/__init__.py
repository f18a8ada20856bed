"""`retire-cluster map`: a task for every line of a file, over restarts and interruptions."""
