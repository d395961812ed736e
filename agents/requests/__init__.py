"""Requests for slates: admission, batching and replies.

`recommend` is the entry. A request goes through `parsing`, `waiting` (for its event or schema), `backlog` and `ranking`,
`replies` and `outbox`; `offsets` and `commits` record what is answered.
"""
