"""The run: a method's stages through transformers.Trainer, with exact resume."""
