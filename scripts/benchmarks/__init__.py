"""What scripts/bench is made of.

`machine` asks the kernel, `content` makes and checks bytes, `sites` and `gluster` are the file systems that are
compared, `comparison` says what a comparison is and runs it; `writing`, `reading`, `healing` and `requests` are the
comparisons; `report` prints them. Only Python's standard library is used.
"""
