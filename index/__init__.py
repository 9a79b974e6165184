"""The gallery: a durable truth in SQLite and a disposable FAISS search beside it."""
