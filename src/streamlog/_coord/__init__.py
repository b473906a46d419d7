"""Coordination: groups and their offsets, as pure transition tables and folds over internal topics."""
