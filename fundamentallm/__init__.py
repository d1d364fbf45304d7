"""FundamentaLLM: train a language model from scratch, watch it learn, and see why it writes what it writes."""
