"""From claims, contests and verdicts to who is convicted and who accused falsely. Pure, in integers, without a clock.

outcomes    what follows                          timeline    what is due by when
docket      records in order, one case a claim    holdings    who has worked on which blocks
committee   who judges                            votes       what they say together
proceedings one case, through its levels          judge       all cases, earlier before later
duties      what one member has to do now
signed_rulings  what anchors have signed, and what of it stands

Nothing here checks a signature or an error: records come validated, and members' opinions are theirs.
"""
