"""The demonstration: two node processes on loopback TCP, every feature once, judged from outside.

``scenario`` says what happens, ``agent`` is a node process that takes commands, ``process`` drives it, ``proxy`` counts
and cuts the link, ``content`` is the real input and the writer's oracle, ``table`` shows what came out.
"""
