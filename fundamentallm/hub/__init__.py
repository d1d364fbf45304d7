"""To the Hugging Face Hub and back. What is here takes folders, not models."""
