"""Data: sources -> examples -> batches."""
