"""`accmt replay`: other rules on a recorded training, and the sources of its history."""
