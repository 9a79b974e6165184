"""From trained weights to what is served: one graph, its int8 form, and proof that both say the same."""
