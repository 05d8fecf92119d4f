"""The command line. It starts at once: nothing here imports torch, and rich and MLflow only where they are used."""
