"""Plain modules: no process group, no mesh, no sharding in any of them. Parallelism is applied from outside, by `parallel.py`."""
