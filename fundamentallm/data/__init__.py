"""Text to tokens to batches.

``corpus`` reads any text a person might have, ``examples`` holds the built-in ones, ``statistics`` describes them,
``tokenizers`` turn characters into numbers, ``token_store`` keeps those on disk, and ``batches`` deals them out.
Only ``batches`` needs torch.
"""
