"""The command line. It starts fast: nothing here imports torch; rich and MLflow are imported only when used."""
