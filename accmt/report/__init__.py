"""Reports of trainings: one HTML page that works offline, or a few lines of text. Does not import torch."""
