"""What ``simulate_reputation.py`` runs: a swarm with liars in it, under one rule of trust or another.

settings    sizes and rates                      attacks    what liars do
book        what is recorded                     rules      whom a rule sends work to
courts      claims, committees, appeals          swarm      the epochs of one run
figures     what is read off a run               tables     markdown
overload    the queue of servers under load      demands    what has to hold
"""
