"""What we run in place of stock hivemind parts, each module saying which stock behaviour it mends.

daemon    starts p2pd with our arguments and ends it with us        control   speaks its control protocol
storage   keeps records by the rules of one key                     protocol  answers and asks DHT calls
overlay   looks up, stores and reads over the whole DHT

Stock hivemind trusts every peer that can connect; nothing here does.
"""
