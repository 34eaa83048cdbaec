"""What one node does about claims: make them, hand out their evidence, deny them, judge them.

shelf      evidence on disk            stream     evidence from and to members
notebook   what must outlive a crash   findings   what an examination says
rerun      evidence as work to check   examiner   runs it, with weights at hand
accuser    failed work to claims       desk       what is due, done
clerk      what an anchor found final, signed for others

The rule is ``dht.judgement``'s; nothing here decides who is right, only what this node says and signs.
"""
