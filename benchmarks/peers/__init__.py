"""What QuadRank is compared with: pandas, copied histories, the paper's equations as written, and FuxiCTR."""
