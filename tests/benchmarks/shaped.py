"""Sizes of the small MM-CTR-shaped log that the tests of the peers share, and of the model trained on it."""

ROWS, USERS, ITEMS, MAX_LEN = 2_000, 40, 300, 8
TRAINED = 1_600
SIZES = {"embedding_dim": 6, "vector_dim": 5, "attention_dim": 16, "layers": 2, "rows": 3, "dropout": 0.0}
PRESET = {"model": SIZES, "train": {"device": "cpu"}}
