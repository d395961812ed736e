"""Kafka clients of librdkafka, which do their input and output in threads of their own, outside the interpreter's lock.

`clients` creates them, `reader` reads the topics of requests, `producer` sends replies. All other topics are read and written
with aiokafka: see decision 0053.
"""
