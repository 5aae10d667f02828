"""The built-in trainer: from data and a goal to a trained model, exactly, whatever happens to the processes on the way.

`loop.py` is the place to start reading. Each other module is one room: `config` what a user may write, `tasks` and `models` what is
learnt, `data` in which order, `parallel` on how many processes, `checkpoint` how it is kept. Models know nothing of parallelism.
"""
