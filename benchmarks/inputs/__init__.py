"""What is measured on: a log in the shape of MM-CTR, and the contract of the feature build."""
