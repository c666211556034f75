from stages.arithmetic import choose_instructions

choose_instructions()
