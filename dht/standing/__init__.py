"""Where everyone stands by what is on the DHT: records in, scores of ``dht.reputation`` out, as long as a node runs.

workbook     what receipts add up to           proofs       what stands on the DHT beside receipts
epoch_reader one kind, each closed epoch once  work_reader  receipts into a workbook
proof_reader all other kinds into proofs
gathering    all of it as evidence             hearing      claims judged, epoch by epoch
board        scores that are kept fresh
ranks        scores in a word each             precedence   who is served first under load
snapshot_scores  the digest that bootstraps publish
"""
