"""Model architectures: one short file each, on the shared batch, embedding and export machinery."""
