"""What runs a trained model: the manifest that describes it and the session that executes it."""
