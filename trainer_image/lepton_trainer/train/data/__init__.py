"""From a source of data to the batches of one process: the order, the sources, cleaning, augmentation and the cache."""
