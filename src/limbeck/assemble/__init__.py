"""A recipe's models, data and method as objects, by method."""
