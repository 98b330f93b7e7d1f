"""The service: edits over HTTP, as clients of the images API already speak.

`engine` is one edit as a value and the only part that knows the model; `worker` holds a model in a
process of its own; `jobs` is the bounded queue before the workers; `service` speaks HTTP.
"""
