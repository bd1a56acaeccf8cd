"""Small dense and convolutional networks. NumPy applies them, torch trains them. Nothing here depends on exits."""
