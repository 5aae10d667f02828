"""An exported model answering over HTTP: adapters between JSON and tensors, batches of what waits, models that change without a pause."""
