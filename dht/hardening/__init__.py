"""What we run in place of stock hivemind parts, each module saying which stock behaviour it mends.

daemon    starts p2pd with our arguments and ends it with us        control   speaks its control protocol
storage   keeps records by the rules of one key                     protocol  answers and asks DHT calls
walk      finds the members nearest to an id                        findings  merges what members hold under a key
density   how large the swarm is, how far a region reaches          regions   finds the members that hold a region
harvest   reads many keys in few calls                              shunned   passes by who does not answer
turns     works side by side, so many at once
overlay   looks up, stores and reads over the whole DHT             keeper    stores again what members lack

Stock hivemind trusts every peer that can connect; nothing here does.
"""
