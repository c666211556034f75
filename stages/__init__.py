import gc

from stages.arithmetic import choose_instructions

choose_instructions()
# Importing makes a million objects that stay. To search for cycles whenever there are 700 new ones, as Python does,
# takes a seventh of the time.
gc.set_threshold(5_000)
