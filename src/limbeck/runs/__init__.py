"""A recipe's run from first to last, by method."""
