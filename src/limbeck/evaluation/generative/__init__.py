"""What a model that writes makes of a question: the benchmarks' own files, prompts and rules of scoring."""
