"""The processes of a training: how they start, agree, fail and end together, and how they share a model."""
