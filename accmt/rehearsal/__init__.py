"""Rehearsals: a short trial of a whole training, with a kill and a resume, that leaves everything as it was."""
