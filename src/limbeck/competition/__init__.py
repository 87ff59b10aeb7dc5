"""CoMD's competition: asking models, their prompts and replies, and the pool that keeps every answer."""
