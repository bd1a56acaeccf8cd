"""Small dense networks: applied by NumPy, trained by torch in mini-batches. Nothing here knows about exits."""
