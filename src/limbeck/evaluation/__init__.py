"""How good a model is: retrieval, captioning and question answering, in the benchmarks' own measures."""
