"""Public data sets that a contract is shipped for: whose they are, on what terms, and how to get them."""
