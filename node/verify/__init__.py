"""What those do who have a model's weights: judge what audits have opened, and check servers in sessions of their own.

It uses servers as any client does, and knows nothing of commands.
"""
