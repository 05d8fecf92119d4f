"""Private names of other libraries, each with the reason for its use."""
