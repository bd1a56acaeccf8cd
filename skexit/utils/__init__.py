"""Private helpers of all packages of skexit: private names of scikit-learn, the array API, optional packages, HTML."""
