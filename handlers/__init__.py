"""The answer: one service shared by every front, and the fronts that speak HTTP."""
