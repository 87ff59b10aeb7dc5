"""What a method may ask of a model: the three families, their scales, and the way from and to other formats."""
