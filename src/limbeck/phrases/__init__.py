"""The noun-phrase filter: which captions to keep so that every phrase is there, and none too often."""
