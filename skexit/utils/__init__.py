"""What every room needs and no user does: scikit-learn's private names, the array API, optional packages, HTML."""
