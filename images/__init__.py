"""Where pixels come from: the one place that decodes, orients and resizes, and the sources it reads."""
